"""How one dimension is divided among ranks: of weights, and of the scales and codes of quantized ones. Pure.

Source: compressed-tensors 0.20 (`weight`, `weight_packed`, `weight_scale`, `weight_zero_point`,
`weight_shape`) and bitsandbytes 0.50 (`SCB`, `weight_format`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from .errors import CannotSplitError, DamagedFileError
from .layout import Axis, Interval, rank_intervals
from .model import Model
from .tensors import LogicalTensor

#: Parameters of an ordinary module; `""` is one with a name of its own.
PLAIN: Final = ("", "weight", "bias")
#: Parameters that follow the rows, and the columns if they have more than one, of a quantized weight.
COMPANIONS: Final = ("weight_scale", "weight_minimum", "weight_zero_point", "SCB", "weight_packed")
#: Parameters that every rank holds whole: they say nothing of single rows or columns.
SCALARS: Final = ("weight_format", "input_scale", "input_zero_point")
#: The shape of a packed weight, as a tensor of two numbers.
SHAPE: Final = "weight_shape"
#: Scales of chunks that begin and end inside rows, by a number of groups for the whole weight.
CHUNKS: Final = "weight_chunk_scale"
#: Parameters of Linears and embeddings that can be cut.
_KNOWN: Final = (*PLAIN, *COMPANIONS, *SCALARS)


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """One way to share a tensor out.

    Attributes:
        dim: the dimension that is cut.
        axis: how the *weight's* dimension is made of parts.
        ratio: elements of the weight's dimension per element of this one (group size, or packing).
    """

    dim: int
    axis: Axis
    ratio: int = 1

    def intervals(self, name: str, tp_size: int, tp_rank: int) -> tuple[Interval, ...]:
        """The rank's intervals of dimension `dim`, in the rank's order.

        Args:
            name: the tensor's, for messages.
            tp_size: the degree.
            tp_rank: the rank, from 0 on.

        Raises:
            CannotSplitError: the degree cuts a head or a quantization group; it names degrees that work.
        """
        try:
            in_weight = rank_intervals(self.axis, tp_size, tp_rank)
        except CannotSplitError as error:
            raise CannotSplitError(f"{name}: {error}") from None
        if self.ratio == 1:
            return in_weight
        if not self.works(tp_size):
            raise CannotSplitError(
                f"{name}: a cut at tp_size={tp_size} goes through a group of {self.ratio} quantized "
                f"elements; degrees that work: {', '.join(map(str, self._degrees()))}"
            )
        return tuple((begin // self.ratio, end // self.ratio) for begin, end in in_weight)

    def works(self, tp_size: int) -> bool:
        """Whether no rank's interval begins or ends inside a group."""
        try:
            bounds = [b for r in range(tp_size) for i in rank_intervals(self.axis, tp_size, r) for b in i]
        except CannotSplitError:
            return False
        return all(bound % self.ratio == 0 for bound in bounds)

    def _degrees(self) -> list[int]:
        return [n for n in range(1, 65) if self.works(n)]


def check_parameter(name: str, param: str) -> None:
    """Check that a module which is cut has no parameter whose cut is not known.

    Raises:
        CannotSplitError: `param` is one.
    """
    if param == SHAPE:
        # Unpacking needs the shape of the rank's own weight, and no box of this tensor has it.
        raise CannotSplitError(
            f"{name} holds the shape of the whole weight, which no rank's part of it has; a pack-quantized "
            "checkpoint stays at tp_size=1: cut it unpacked, as int-quantized"
        )
    if param == CHUNKS:
        raise CannotSplitError(
            f"{name} has the scales of chunks that are no whole rows, and no rank's part of the weight is of "
            "whole chunks; quantize with a number of `groups` that divides the rows of every weight and is a "
            "multiple of the degree"
        )
    if param not in _KNOWN:
        raise CannotSplitError(
            f"{name}: how a {param} is shared out is not known; known are {', '.join(_KNOWN[1:])}"
        )


def check_recipe(name: str, param: str, model: Model) -> None:
    """Check that the configuration describes every parameter that is no plain weight or bias.

    Formats for plain weights trust the configuration, and would leave scales out without a word.

    Args:
        name: the tensor's.
        param: the last part of its name.
        model: whose configuration has the recipe.

    Raises:
        DamagedFileError: it has no `quantization_config`.
    """
    if param not in PLAIN and not model.config.get("quantization_config"):
        raise DamagedFileError(
            f"{name} is no plain weight or bias, and the configuration has no quantization_config that "
            "explains it; take the config.json that belongs to the checkpoint"
        )


def companion_cut(
    axis: Callable[[int], Axis], dim: int, weight: int, extent: int, name: str, model: Model
) -> Cut | None:
    """The cut of dimension `dim` of a companion; None where it is whole on every rank.

    Args:
        axis: from the weight's extent to its axis.
        dim: 0 for the weight's rows, 1 for its columns.
        weight: the weight's extent, unpacked.
        extent: the companion's.
        name: the companion's.
        model: whose configuration has the recipe.

    Raises:
        CannotSplitError: groups that are not all of one size.
    """
    groups = _weights(model, "group_size") if dim == 1 and not name.endswith("weight_packed") else set()
    # One column of scales serves the whole row, unless that row is said to be one group.
    if extent == 1 and weight not in groups:
        return None
    ratio = weight // extent
    if weight % extent or (groups and ratio not in groups):
        sizes = f" of {', '.join(map(str, sorted(groups)))}" if groups else ""
        raise CannotSplitError(
            f"{name}: {extent} groups{sizes} do not make up the weight's {weight} elements"
        )
    return Cut(dim=dim, axis=axis(weight), ratio=ratio)


def weight_shape(module: str, tensors: Mapping[str, LogicalTensor], model: Model) -> tuple[int, int]:
    """`[out, in]` of the quantized weight of `module`, unpacked.

    Args:
        module: the module's name.
        tensors: the checkpoint's.
        model: whose configuration has the recipe.

    Raises:
        DamagedFileError: it has none.
    """
    plain = tensors.get(f"{module}.weight")
    if plain is not None and len(plain.shape) == 2:
        return plain.shape[0], plain.shape[1]
    packed = tensors.get(f"{module}.weight_packed")
    bits = _weights(model, "num_bits")
    if packed is None or len(packed.shape) != 2 or len(bits) != 1 or not bits <= {4, 8}:
        raise DamagedFileError(f"{module} has scales, but no weight in a form that is known")
    return packed.shape[0], packed.shape[1] * (32 // bits.pop())


def _weights(model: Model, key: str) -> set[int]:
    """The whole numbers that the recipe's groups of modules have under `key` for their weights."""
    recipe = model.config.get("quantization_config")
    groups: Any = recipe.get("config_groups") if isinstance(recipe, dict) else None
    values: set[int] = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        value = weights.get(key) if isinstance(weights, dict) else None
        if type(value) is int and value > 0:
            values.add(value)
    return values
