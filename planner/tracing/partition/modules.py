"""Roles by module, for the nodes of a graph."""

from typing import Any

from planner.graph.schema import ModuleRole
from planner.tracing.partition.schema import ParameterPartition, PartitionSpec


def module_roles(roles: PartitionSpec, model: Any) -> dict[str, ModuleRole]:
    """Module fqn → how its weights may be cut; elementwise parameters such as biases do not count.

    A module with column- and row-parallel weights, such as experts in one tensor, has the role `row`, because
    an all-reduce follows it.
    """
    weights_of: dict[str, list[tuple[int, ParameterPartition]]] = {}
    sizes = {name: p.numel() for name, p in model.named_parameters(remove_duplicate=False)}
    for name, role in roles.parameters.items():
        if role.role != "elementwise":
            weights_of.setdefault(name.rpartition(".")[0], []).append((sizes[name], role))
    return {module: _together(weights) for module, weights in weights_of.items()}


def _together(weights: list[tuple[int, ParameterPartition]]) -> ModuleRole:
    total = sum(size for size, _ in weights)
    return ModuleRole(
        role="row" if any(role.role == "row" for _, role in weights) else "column",
        num_groups=min(role.num_groups for _, role in weights),
        sharded=round(sum(size * role.sharded for size, role in weights) / total, 6),
    )
