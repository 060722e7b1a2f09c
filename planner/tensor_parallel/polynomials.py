"""Arithmetic on the graph's cost polynomials."""

from collections.abc import Iterable

from planner.graph.schema import Poly

_FIELDS = Poly.__struct_fields__


def scaled(poly: Poly, factor: float) -> Poly:
    """Every coefficient times `factor`."""
    return Poly(*(getattr(poly, name) * factor for name in _FIELDS))


def lowest(polys: Iterable[Poly]) -> Poly:
    """The smallest value of each coefficient over `polys`; zero when there are none."""
    every = list(polys)
    return Poly(*(min((getattr(p, name) for p in every), default=0.0) for name in _FIELDS))


def shrunk(poly: Poly, base: Poly, degree: int) -> Poly:
    """Divides what exceeds `base`, coefficient by coefficient.

    A negative coefficient is a correction to another one that is divided, so it is divided as well.

    Args:
        poly: the cost of the whole module.
        base: the part of it that every rank has in full.
        degree: number of ranks.
    """
    return Poly(*(_shrunk(getattr(poly, name), getattr(base, name), degree) for name in _FIELDS))


def _shrunk(have: float, keep: float, degree: int) -> float:
    return have if 0 <= have < keep else keep + (have - keep) / degree
