"""Which modules must execute on one device. Pure."""

from collections.abc import Iterable

from planner.graph.schema import ModuleGraph


def placement_units(graph: ModuleGraph) -> tuple[tuple[str, ...], ...]:
    """Tensor-owning modules that must execute on one device, as groups in execution order.

    The groups are the connected components of: same no-split block, co-located, tied. They are joined here
    and not by networkx, whose import alone takes a sixth of the time of a plan.
    """
    owners = {node.name: node for node in graph.nodes if node.tensors}
    group_of = {name: [name] for name in owners}
    blocks: dict[str, list[str]] = {}
    for name, node in owners.items():
        if node.block is not None:
            blocks.setdefault(node.block, []).append(name)
    tied = [[fqn.rpartition(".")[0] for fqn in tie] for tie in graph.ties]
    for names in (*blocks.values(), *graph.co_located, *tied):
        _join(group_of, [name for name in names if name in owners])
    groups = {id(group): sorted(group, key=lambda name: owners[name].order) for group in group_of.values()}
    return tuple(tuple(group) for group in sorted(groups.values(), key=lambda group: owners[group[0]].order))


def _join(group_of: dict[str, list[str]], names: Iterable[str]) -> None:
    """Make the groups of some modules one; a group is one list that all its members refer to."""
    joined: list[str] | None = None
    for name in names:
        group = group_of[name]
        if joined is None or joined is group:
            joined = group
            continue
        joined += group
        group_of |= dict.fromkeys(group, joined)
