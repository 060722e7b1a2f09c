"""DeepSpeed's MoQ: a number of groups per tensor, each a chunk of the flattened weights.

Bit-equal to `deepspeed.runtime.weight_quantizer.WeightQuantization.quantize_data` (0.19.8) for float32,
float16 and bfloat16: it computes in float32 throughout. For a chunk g and b bits

    s = 2^b / (2 * max |g| + 1e-5)        q = clamp(round(g * s), -2^(b-1), 2^(b-1) - 1)

where torch divides a number by a tensor as number * reciprocal. A chunk holds `numel // groups` weights, so
weights that remain make one extra group, or several. The 1e-5 spares a group of zeros a division by zero, and
costs precision where weights are of that order: all are then encoded as zero.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import absmax as loops
from . import absmax
from .blocks import Block, Encoded, Floats


def scale(magnitudes: Floats, bits: int = 8) -> Floats:
    """The multiplier of each group, float32 [groups], from its largest absolute value.

    Raises:
        ScaleOverflowError: twice the largest value exceeds float32; DeepSpeed's multiplier is 0 then.
    """
    return absmax.scales(_formula(bits), magnitudes)


def encode(
    block: Block, *, group_numel: int, bits: int = 8, codes: NDArray[np.int8] | None = None
) -> Encoded:
    """Encode whole chunks, and the rest as a last, shorter one.

    Args:
        block: a tensor of any shape, or a part of one that begins at a multiple of `group_numel`.
        group_numel: weights per chunk, of the whole tensor (`quantize.scheme.Moq.group_numel`).
        bits: 2 to 8.
        codes: a buffer for the codes, of the block's shape.

    Returns:
        Encoded: int8 codes of the block's shape; float32 multipliers s, flat.

    Raises:
        NonfiniteWeightError: a weight is NaN or infinite.
        ScaleOverflowError: a group that DeepSpeed could not decode.
    """
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
    """Codes of any part of a tensor, when the multipliers of the whole are known.

    They follow from two passes: `blocks.observe` on every part, then `scale`.

    Args:
        block: consecutive weights, of any shape.
        scales: the multipliers of all of the tensor's groups.
        group_numel: weights per group of the tensor.
        first: where in the flattened tensor the block begins.
        bits: 2 to 8.
        codes: a buffer for the codes, of the block's shape.
    """
    return absmax.encode_part(block, scales, group_numel, _formula(bits), first, codes)


def kept(scales: Floats) -> Floats:
    """What `WeightQuantization.Quantize` keeps of the multipliers: their reciprocals, float32 (1, groups)."""
    return _reciprocal(scales.reshape(1, -1))


def decode(
    codes: NDArray[np.int8],
    scales: Floats,
    *,
    group_numel: int,
    dtype: np.dtype[Any],
    block: Block | None = None,
) -> Block:
    """The weights, code * scale; `scales` are the kept ones, the reciprocals.

    Args:
        codes: int8 of any shape.
        scales: the kept ones, the reciprocals.
        group_numel: codes per group.
        dtype: of the weights.
        block: a buffer of the shape of `codes`; None makes one.
    """
    return absmax.decode(codes, scales, group_numel, dtype, block=block)


def _reciprocal(values: Floats) -> Floats:
    inverse: Floats = np.float32(1) / values
    return inverse


def _formula(bits: int) -> absmax.Formula:
    return absmax.Formula(
        rule=loops.MOQ, bits=bits, steps=1 << bits, limit="half of float32's largest number"
    )
