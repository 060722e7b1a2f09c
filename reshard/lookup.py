"""Which entry of a family's table is for which tensor. Pure."""

from .architectures.schema import Architecture, Module, Role
from .model import Model, holds


def find(table: Architecture, model: Model, name: str) -> tuple[Module, str, str, tuple[str, ...]] | None:
    """The table's entry for the tensor `name`: entry, module, parameter, what the wildcards stand for.

    Args:
        table: the family's.
        model: whose configuration decides between several entries.
        name: the tensor's.
    """
    if table.prefix and name.startswith(table.prefix + "."):
        tries = ((table.base, table.prefix + "."), (table.top, ""))
    else:
        tries = ((table.top, ""), (table.base, ""))
    module, _, param = name.rpartition(".")
    for patterns, prefix in tries:
        for path, rest in ((name, ""), (module, param)):
            for pattern, value in patterns.items():
                stars = _match(pattern, path.removeprefix(prefix))
                entry = None if stars is None else entry_for(value, table, model)
                if stars is not None and entry is not None:
                    return entry, path, rest, stars
    if table.others is None:
        return None
    return Module(role=table.others), module, param, ()


def _match(pattern: str, path: str) -> tuple[str, ...] | None:
    wanted, given = pattern.split("."), path.split(".")
    if len(wanted) != len(given):
        return None
    stars = []
    for want, have in zip(wanted, given, strict=True):
        if want == "*":
            stars.append(have)
        elif want != have:
            return None
    return tuple(stars)


def entry_for(value: Role | Module | tuple[Module, ...], table: Architecture, model: Model) -> Module | None:
    """What a table gives for a pattern, once the configuration has decided; None: nothing.

    Args:
        value: the table's value.
        table: the family's table.
        model: whose configuration decides between several entries.
    """
    if isinstance(value, str):
        return Module(role=value)
    options = value if isinstance(value, tuple) else (value,)
    return next((o for o in options if holds(model.config, table, o.when)), None)
