"""Names of a package that are imported from their modules when they are first used."""

import importlib
import sys
from collections.abc import Container, Mapping
from typing import Any, Final

#: The distribution that all the packages are in.
_DISTRIBUTION: Final = "offload-planner"


def export(package: str, modules: Mapping[str, Container[str]], name: str) -> Any:
    """The value of a package's name, which stays in the package; for its `__getattr__`.

    Args:
        package: its `__name__`.
        modules: module, relative to the package → the names that the package has of it.
        name: one of these, or `__version__`, which is the installed distribution's.

    Raises:
        AttributeError: the package has no such name.
    """
    owner = next((module for module, names in modules.items() if name in names), None)
    if name == "__version__":
        from importlib.metadata import version  # takes longer to import than a package itself

        value: Any = version(_DISTRIBUTION)
    elif owner is not None:
        value = getattr(importlib.import_module(f".{owner}", package), name)
    else:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    setattr(sys.modules[package], name, value)
    return value
