"""How each parameter of a model may be cut over ranks. Needs no torch."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Groups: TypeAlias = npt.NDArray[np.int64]
#: Column: cut along its outputs. Row: along its inputs, and an all-reduce follows. Elementwise: cut as
#: the features that it is applied to, as a bias or a norm's weight of each head.
PartitionKind: TypeAlias = Literal["column", "row", "elementwise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterPartition:
    """How one parameter may be cut.

    Attributes:
        role: column, row or elementwise; see `PartitionKind`.
        dim: the dimension that is cut.
        families: for each family of groups (see `PartitionSpec`) the group of every index of that dimension,
            or -1.
        family_sizes: number of groups of each family.
        num_groups: greatest common divisor of the sizes; a degree works when it divides it.
        sharded: fraction of the parameter that is cut; the rest is on every rank.
        meets: fqn of the first row-parallel parameter that sums over these groups; equal for all parameters
            that must be cut alike.
    """

    role: PartitionKind
    dim: int
    families: tuple[Groups, ...]
    family_sizes: tuple[int, ...]
    num_groups: int
    sharded: float
    meets: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """How a model may be cut over ranks.

    A row-parallel weight may sum over features of several *families*: heads of attention beside features of
    an MLP, for example. Every rank has a part of each.

    Attributes:
        model_type: `model_type` of the configuration.
        parameters: by fqn, in the model's order; every rank holds all of those that are not listed.
        biases: parameters that are added once, after the all-reduce.
        replicated: parameters that could be cut, with outputs that every rank holds so that others can be
            cut, as keys and values of one head that all heads of queries use.
        constants: modules with a tensor that is not a parameter and must be cut with the heads or features,
            such as slopes of ALiBi.
        unknown: operations without a rule, and how often they ran; features that they combine are kept on one
            rank.
    """

    model_type: str
    parameters: dict[str, ParameterPartition]
    biases: frozenset[str] = frozenset()
    replicated: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    unknown: dict[str, int] = field(default_factory=dict)
