"""What `planner.roles` derives, as a roles file and as what a loader must know beside it."""

from pathlib import Path
from typing import NamedTuple

from planner.models.resolve import resolve
from planner.tensor_parallel.roles_file import export
from planner.tracing.partition.of_spec import partition_of
from reshard.roles import Roles


class Derived(NamedTuple):
    """Roles of a model.

    Attributes:
        file: what `reshard` reads.
        rows: the row-parallel parameters: a sum over the ranks follows.
        cut: every parameter that is cut.
        constants: modules with a tensor of heads that is no parameter.
    """

    file: Roles
    rows: frozenset[str]
    cut: frozenset[str]
    constants: tuple[str, ...]


def derived(folder: Path) -> Derived:
    """The roles of the model whose configuration is in `folder`; its weights are not read."""
    spec = resolve(str(folder))
    found, names = partition_of(spec)
    kept = {name: role for name, role in found.parameters.items() if name in set(names)}
    return Derived(
        file=export(found, names, config_sha256=spec.config_sha256),
        rows=frozenset(name for name, role in kept.items() if role.role == "row"),
        cut=frozenset(kept),
        constants=found.constants,
    )
