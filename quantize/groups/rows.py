"""DeepSpeed's GroupQuantizer: groups of rows, or a number of groups, of one size.

Bit-equal to `deepspeed.module_inject.replace_module.GroupQuantizer.quantize` (0.19.8) for float32, float16
and bfloat16. It divides in float32 whatever the weights' dtype, as its scale is. For a group x and b bits

    scale = max |x| * 2 / 2^b        q = clamp(round(x / scale), -2^(b-1), 2^(b-1) - 1)

The groups are equal chunks of the flattened tensor: `rows // group_size` of them, or `num_groups`. With as
many chunks as rows a group is a row; with `group_numel` a divisor of the input dimension it is a run along
it, which is what the scheme `groups` asks for. A group of zeros has scale 0 and codes 0: torch casts the NaN
of 0 / 0 to 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GroupSizeError
from ..kernels import absmax as loops
from . import absmax
from .blocks import Block, Encoded, Floats


def scale(magnitudes: Floats, bits: int = 8) -> Floats:
    """The scale of each group, float32 [groups], from its largest absolute value.

    Raises:
        ScaleOverflowError: twice the largest value exceeds float32; DeepSpeed's scale is infinite then.
    """
    return absmax.scales(_formula(bits), magnitudes)


def encode(
    block: Block, *, group_numel: int, bits: int = 8, codes: NDArray[np.int8] | None = None
) -> Encoded:
    """Encode whole groups.

    Args:
        block: a tensor of any shape, or a part of one that holds whole groups.
        group_numel: weights per group.
        bits: 2 to 8.
        codes: a buffer for the codes, of the block's shape.

    Returns:
        Encoded: int8 codes of the block's shape; float32 scales, flat.

    Raises:
        GroupSizeError: the block does not hold whole groups.
        NonfiniteWeightError: a weight is NaN or infinite.
        ScaleOverflowError: a group that DeepSpeed could not decode.
    """
    if group_numel < 1 or block.size % group_numel:
        raise GroupSizeError(f"{block.size} weights are no whole groups of {group_numel}")
    return absmax.encode(block, group_numel, _formula(bits), codes)


def encode_part(
    block: Block,
    scales: Floats,
    *,
    group_numel: int,
    first: int = 0,
    bits: int = 8,
    codes: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Codes of any part of a tensor, when the scales of the whole are known.

    They follow from two passes: `blocks.observe` on every part, then `scale`.

    Args:
        block: consecutive weights, of any shape.
        scales: the scales of all of the tensor's groups.
        group_numel: weights per group of the tensor.
        first: where in the flattened tensor the block begins.
        bits: 2 to 8.
        codes: a buffer for the codes, of the block's shape.
    """
    return absmax.encode_part(block, scales, group_numel, _formula(bits), first, codes)


def decode(
    codes: NDArray[np.int8],
    scales: Floats,
    *,
    group_numel: int,
    dtype: np.dtype[Any],
    block: Block | None = None,
) -> Block:
    """The weights, code * scale.

    Args:
        codes: int8 of any shape.
        scales: float32, one per group.
        group_numel: codes per group.
        dtype: of the weights.
        block: a buffer of the shape of `codes`; None makes one.
    """
    return absmax.decode(codes, scales, group_numel, dtype, block=block)


def _formula(bits: int) -> absmax.Formula:
    return absmax.Formula(
        rule=loops.ROWS, bits=bits, steps=1 << bits, limit="half of float32's largest number"
    )
