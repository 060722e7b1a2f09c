"""How values show themselves in a notebook. The report knows how, and stands above: it is told here."""

from collections.abc import Callable, Mapping
from typing import Any

#: Class → a value's HTML, escaped.
Renderers = Mapping[type, Callable[[Any], str]]


class ShownInNotebook:
    """A value with an HTML form of its own, if anybody knows one; otherwise its `repr`."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        """For IPython: None has it show the `repr`."""
        renderer = _known().get(type(self))
        return None if renderer is None else renderer(self)


def _no_renderers() -> Renderers:
    return {}


_known: Callable[[], Renderers] = _no_renderers


def show_by(renderers: Callable[[], Renderers]) -> None:
    """Have values shown by functions that are asked for when the first value is shown.

    Args:
        renderers: gives the functions by class; may import what they need.
    """
    global _known
    _known = renderers
