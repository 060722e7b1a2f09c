"""What is derived: how each parameter of a model may be shared out over ranks. No torch here."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Groups: TypeAlias = npt.NDArray[np.int64]
#: Column: cut along its outputs. Row: along its inputs, and an all-reduce follows. Elementwise: cut as
#: the features that it goes with, as a bias or a norm's weight of each head.
PartitionKind: TypeAlias = Literal["column", "row", "elementwise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterPartition:
    """How one parameter may be cut.

    Attributes:
        role: see above.
        dim: the dimension that is cut.
        families: for each family of groups (see Roles) the group of every index of that dimension, or -1.
        family_sizes: how many groups each family has.
        num_groups: the degrees that work divide it: the greatest common divisor of the sizes.
        sharded: share of the parameter that is cut; the rest is on every rank.
        meets: fqn of the first row-parallel parameter that these groups lead to; equal for all that must be
            cut alike.
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
    an MLP, say. Every rank gets its share of each.

    Attributes:
        model_type: of the configuration.
        parameters: by fqn, in the model's order; those not listed are whole on every rank.
        biases: added once, after the all-reduce.
        replicated: parameters that could be cut, of which every rank holds outputs so that others can be:
            keys and values of one head that all heads of queries use.
        constants: modules with a tensor that is no parameter and must be sliced along with the heads or
            features: slopes of ALiBi.
        unknown: operations without a rule, and how often they ran; all they touched stays together.
    """

    model_type: str
    parameters: dict[str, ParameterPartition]
    biases: frozenset[str] = frozenset()
    replicated: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    unknown: dict[str, int] = field(default_factory=dict)

    @property
    def num_row(self) -> int:
        """How many parameters are row-parallel."""
        return sum(found.role == "row" for found in self.parameters.values())
