"""Roles by module, as a graph's nodes carry them."""

from typing import Any

from planner.graph.schema import ModuleRole
from planner.tracing.partition.schema import ParameterPartition, PartitionSpec


def module_roles(roles: PartitionSpec, model: Any) -> dict[str, ModuleRole]:
    """Module → how its weights may be cut. Biases, and what goes with single features, are not asked.

    A module that holds both kinds, as experts in one tensor do, is a row: an all-reduce follows it.
    """
    found: dict[str, list[tuple[int, ParameterPartition]]] = {}
    sizes = {name: p.numel() for name, p in model.named_parameters(remove_duplicate=False)}
    for name, role in roles.parameters.items():
        if role.role != "elementwise":
            found.setdefault(name.rpartition(".")[0], []).append((sizes[name], role))
    return {module: _together(weights) for module, weights in found.items()}


def _together(weights: list[tuple[int, ParameterPartition]]) -> ModuleRole:
    total = sum(size for size, _ in weights)
    return ModuleRole(
        role="row" if any(role.role == "row" for _, role in weights) else "column",
        num_groups=min(role.num_groups for _, role in weights),
        sharded=round(sum(size * role.sharded for size, role in weights) / total, 6),
    )
