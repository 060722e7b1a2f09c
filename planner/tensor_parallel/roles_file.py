"""Derived roles in the form of the roles file that `reshard` reads. Pure."""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

import reshard.roles as files
from planner.tensor_parallel.patterns import folded
from planner.tracing.partition.schema import ParameterPartition, PartitionSpec

#: Where there are more groups than this, neighbours are merged.
_MANY: Final = 1024
#: Degrees up to this one stay possible after merging.
_LARGEST_DEGREE: Final = 256


def export(roles: PartitionSpec, names: Iterable[str], *, config_sha256: str | None = None) -> files.Roles:
    """The roles file of a model.

    Args:
        roles: from `planner.tracing.partition.derive`.
        names: all parameters of the model.
        config_sha256: hash of its configuration, recorded in the file; None leaves it out.
    """
    every = list(names)
    weight_by_key: dict[tuple[object, ...], files.WeightRoles] = {}
    keys = {name: _key(role) for name, role in roles.parameters.items()}
    weights = {}
    for name, role in roles.parameters.items():
        key = (tuple(id(family) for family in role.families), role.dim)
        weights[name] = weight_by_key.setdefault(key, weight_by_key.get(key) or _weight(role))
    added_once = dict.fromkeys(roles.biases, True)
    return files.Roles(
        model_type=roles.model_type,
        config_sha256=config_sha256,
        weights=folded(weights, keys, every),
        bias_once=tuple(folded(added_once, dict.fromkeys(added_once, True), every)),
    )


def _key(role: ParameterPartition) -> tuple[object, ...]:
    return role.role, role.dim, role.num_groups, *(family.tobytes() for family in role.families)


def _weight(role: ParameterPartition) -> files.WeightRoles:
    num_groups = coarse(role.num_groups)
    groups: list[list[tuple[int, int]]] = [[] for _ in range(num_groups)]
    for family, size in zip(role.families, role.family_sizes, strict=True):
        merged = np.where(family >= 0, family * num_groups // size, -1)
        edges = np.flatnonzero(np.diff(merged)) + 1
        starts, ends = [0, *edges.tolist()], [*edges.tolist(), len(merged)]
        for start, end in zip(starts, ends, strict=True):
            if merged[start] >= 0:
                groups[int(merged[start])].append((start, end))
    return files.WeightRoles(dim=role.dim, groups=tuple(tuple(sorted(group)) for group in groups))


def coarse(num_groups: int) -> int:
    """The number of groups after neighbours are merged, so that the file stays small.

    Every degree up to 256 that divides `num_groups` divides the result. Merging matters where the groups are
    single features: one weight may have 57,344 of them.
    """
    if num_groups <= _MANY:
        return num_groups
    return math.lcm(*(degree for degree in range(1, _LARGEST_DEGREE + 1) if num_groups % degree == 0))
