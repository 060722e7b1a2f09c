"""How values show themselves in a notebook. The report knows how, and stands above: it registers itself."""

from collections.abc import Callable
from typing import Any, Final

#: Class → its HTML.
_RENDERERS: Final[dict[type, Callable[[Any], str]]] = {}


def show_with(kind: type, renderer: Callable[[Any], str]) -> None:
    """Have values of a class shown by a function.

    Args:
        kind: a class that is `ShownInNotebook`.
        renderer: a value → HTML, escaped.
    """
    _RENDERERS[kind] = renderer


class ShownInNotebook:
    """A value with an HTML form of its own, once the report is imported; its `repr` until then."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        """For IPython: None has it show the `repr`."""
        renderer = _RENDERERS.get(type(self))
        return None if renderer is None else renderer(self)
