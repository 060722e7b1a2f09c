"""ZeRO-Inference's weight quantization: 8 or 4 bits from the least to the greatest weight of a group.

Bit-equal to `deepspeed.inference.quantization.utils.Quantizer` (0.19.8) for float32, float16 and bfloat16,
but for the sign of a minimum that is zero, which in torch depends on where -0 stands. Groups are runs of
`group_size` along `dim`. For a group x and b bits, every step rounded to the weights' dtype,

    scale = (2^b - 1) * (1 / (max x - min x))        q = round(clamp((x - min x) * scale, 0, 2^b - 1))

and x = q / scale + min x. A group of one value has an infinite scale, and is restored exactly. In float16 the
scale is infinite as soon as the group spans less than 255 / 65504, about 0.0039 (15 / 65504 for 4 bits): its
codes are then 0 and 2^b - 1, and all are restored as the minimum. DeepSpeed loses those weights, and so does
this: an error report shows it. bfloat16 and float32 do not have that problem.
"""

import math
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import NonfiniteWeightError, ScaleOverflowError
from ..kernels import conversion
from ..kernels import spanning as loops
from .blocks import Block, Encoded, narrow, output, raw, require_multiple, widen


def encode(
    block: Block,
    *,
    group_size: int,
    dim: int = 1,
    bits: int = 8,
    codes: NDArray[np.uint8] | None = None,
) -> Encoded:
    """Encode whole groups.

    Args:
        block: weights of any shape; the length of `dim` is a multiple of `group_size`.
        group_size: weights per group.
        dim: the dimension that groups run along, from 0.
        bits: 8, or 4: two codes share a byte then, the first in the upper half, along the last dimension.
        codes: a buffer for the codes.

    Returns:
        Encoded: uint8 codes, of the block's shape or with half its last dimension; scales and minima in the
        block's dtype, where `dim` is replaced by (groups, 1).

    Raises:
        GroupSizeError: groups do not tile `dim`, or 4-bit codes do not fill whole bytes.
        NonfiniteWeightError: a weight is NaN or infinite.
        ScaleOverflowError: a group spans more than its dtype can hold; DeepSpeed's scale is 0 then.
    """
    require_multiple(block.shape[dim], group_size, f"dimension {dim} of")
    packed = output(codes, _codes_shape(block.shape, bits), np.uint8)
    slabs = _slabs(block.shape, group_size, dim)
    weights = raw(block).reshape(slabs)
    scales, minima = (np.empty((slabs[0], slabs[2]), np.float32) for _ in range(2))
    top, like = np.float32((1 << bits) - 1), raw(np.zeros(1, block.dtype))
    whole = like.view(f"i{block.itemsize}")
    if bits == 8:
        bad = loops.encode(weights, top, like, whole, scales, minima, packed.reshape(slabs))
    else:
        bad = loops.encode_pairs(weights, top, like, whole, scales, minima, packed.reshape(-1))
    if bad >= 0:
        _refuse(block, slabs, bad)
    kept = (*block.shape[:dim], block.shape[dim] // group_size, 1, *block.shape[dim + 1 :])
    return Encoded(packed, *(narrow(table, block.dtype).reshape(kept) for table in (scales, minima)))


def decode(
    codes: NDArray[np.uint8],
    scales: Block,
    minimum: Block,
    *,
    dim: int = 1,
    bits: int = 8,
    block: Block | None = None,
) -> Block:
    """The weights, code / scale + minimum, both steps rounded to the dtype of `scales` and `minimum`.

    Bit-equal to `DeQuantizer.dequantize` on a CPU where it does not take its CUDA kernel.

    Args:
        codes: as `encode` gives them.
        scales: the same.
        minimum: the same.
        dim: as `encode` was given it.
        bits: the same.
        block: a buffer for the weights.
    """
    wide = codes if bits == 8 else split(codes)
    weights = output(block, wide.shape, scales.dtype.type)
    slabs = _slabs(wide.shape, wide.size // scales.size, dim)
    small = (slabs[0], slabs[2])
    tables = widen(minimum).reshape(small), widen(scales).reshape(small)
    slab_codes, target = wide.reshape(slabs), raw(weights).reshape(slabs)
    if slabs[2] == 1:
        loops.restore_rows(slab_codes[..., 0], *(t[:, 0] for t in tables), target[..., 0])
    else:
        loops.restore_columns(slab_codes, *tables, target)
    return weights


def split(joined: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The 4-bit codes in bytes of two, [..., 2 n] in [..., n]."""
    codes = np.empty((*joined.shape[:-1], joined.shape[-1] * 2), np.uint8)
    conversion.split_nibbles(joined.reshape(-1), np.uint8(0), True, codes.reshape(-1))
    return codes


def _codes_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    if bits == 8:
        return shape
    require_multiple(shape[-1], 2, "a last dimension, which 4 bits pack in pairs, of")
    return (*shape[:-1], shape[-1] // 2)


def _slabs(shape: tuple[int, ...], group_size: int, dim: int) -> tuple[int, int, int]:
    """(groups before `dim`, group_size, groups beside each other after `dim`)."""
    outer = math.prod(shape[:dim]) * (shape[dim] // group_size)
    return outer, group_size, math.prod(shape[dim + 1 :])


def _refuse(block: Block, slabs: tuple[int, int, int], group: int) -> NoReturn:
    """Say what is wrong with the first group that has no scale."""
    begin = group // slabs[2] * slabs[1] * slabs[2]
    is_finite = np.isfinite(widen(block.reshape(-1)[begin : begin + slabs[1] * slabs[2]]))
    if not is_finite.all():
        raise NonfiniteWeightError(begin + int(np.argmin(is_finite)))
    raise ScaleOverflowError(group, "the range of their dtype from the least to the greatest")
