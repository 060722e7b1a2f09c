"""compressed-tensors' symmetric integers: one scale per row, or per `group_size` weights of one.

Bit-equal to compressed-tensors 0.20 (`calculate_qparams`, then `quantize`) with scales in the weights' dtype,
which is how its models keep them. For a group x and b bits, every step rounded to the weights' dtype,

    scale = max |x| / ((2^b - 1) / 2)        q = round(clamp(x / scale, -2^(b-1), 2^(b-1) - 1))

A scale that comes out as 0 becomes the dtype's epsilon, so a group of zeros has codes 0. In bfloat16 the
quotient is rounded to 8 significant bits before it is rounded to an integer, which costs accuracy; `search`
keeps the format and rounds once.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import absmax as loops
from . import absmax
from .blocks import Block, Encoded, require_multiple

#: By a block's dtype; uint16 is bfloat16.
_EPSILON: Final[dict[np.dtype[Any], float]] = {
    np.dtype(np.float32): 2.0**-23,
    np.dtype(np.float16): 2.0**-10,
    np.dtype(np.uint16): 2.0**-7,
}


def encode(
    block: Block, *, group_size: int | None = 128, bits: int = 8, codes: NDArray[np.int8] | None = None
) -> Encoded:
    """Encode whole rows.

    Args:
        block: float weights [rows, in].
        group_size: weights per scale, along `in`; None: one scale per row.
        bits: 2 to 8.
        codes: a buffer for the codes, of the block's shape.

    Returns:
        Encoded: int8 codes [rows, in]; scales [rows, in / group_size] in the block's dtype.

    Raises:
        GroupSizeError: `group_size` does not divide `in`.
        NonfiniteWeightError: a weight is NaN or infinite.
    """
    encoded = absmax.encode(block, group_numel(block.shape, group_size), formula(block.dtype, bits), codes)
    return Encoded(encoded.codes, encoded.scales.reshape(block.shape[0], -1))


def decode(codes: NDArray[np.int8], scales: Block, *, block: Block | None = None) -> Block:
    """The weights [rows, in], code * scale, in the dtype of `scales` [rows, in / group_size].

    Args:
        codes: int8 [rows, in].
        scales: [rows, in / group_size], in the dtype of the weights.
        block: a buffer of the shape of `codes`; None makes one.
    """
    return absmax.decode(codes, scales, codes.size // scales.size, scales.dtype, block=block)


def formula(dtype: np.dtype[Any], bits: int) -> absmax.Formula:
    """For blocks of `dtype`."""
    return absmax.Formula(
        rule=loops.SYMMETRIC,
        bits=bits,
        steps=((1 << bits) - 1) / 2,
        dtype=dtype,
        scale_dtype=dtype,
        epsilon=np.float32(_EPSILON.get(dtype, 0.0)),
    )


def group_numel(shape: tuple[int, ...], group_size: int | None) -> int:
    """The weights per scale of a tensor [rows, in].

    Raises:
        GroupSizeError: `group_size` does not divide `in`.
    """
    if group_size is None:
        return shape[-1]
    require_multiple(shape[-1], group_size, "an input dimension of")
    return group_size
