"""Arithmetic on the graph's cost polynomials."""

from collections.abc import Iterable

from planner.graph.schema import Poly

_FIELDS = Poly.__struct_fields__


def scaled(poly: Poly, factor: float) -> Poly:
    """Every coefficient times `factor`."""
    return Poly(*(getattr(poly, name) * factor for name in _FIELDS))


def lowest(polys: Iterable[Poly]) -> Poly:
    """The least of each coefficient; zero for none."""
    given = list(polys)
    return Poly(*(min((getattr(p, name) for p in given), default=0.0) for name in _FIELDS))


def shrunk(poly: Poly, base: Poly, degree: int) -> Poly:
    """What exceeds `base` divided by `degree`, coefficient by coefficient; what does not stays.

    A negative coefficient takes something off another one, which is divided, so it is divided as well.
    """
    return Poly(*(_shrunk(getattr(poly, name), getattr(base, name), degree) for name in _FIELDS))


def _shrunk(have: float, keep: float, degree: int) -> float:
    return have if 0 <= have < keep else keep + (have - keep) / degree
