"""bitsandbytes' LLM.int8() weights: one largest absolute value per row, `SCB`.

Bit-equal to bitsandbytes 0.50 on a CPU: `int8_vectorwise_quant` with threshold 0, on weights that
`Int8Params` casts to float16 first. Its CUDA kernel divides less exactly, so a tie may fall to the other side
there. For a row x

    SCB = max |x|        q = round(x * (127 / SCB))        x = q * SCB * (1 / 127)

where 127 / SCB is 127 * reciprocal. A row of zeros has SCB 0 and codes 0.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..errors import NonfiniteWeightError, ScaleOverflowError
from . import absmax
from .blocks import Block, Encoded, Floats, narrow, output, tiles, widen

#: As bitsandbytes writes 1 / 127.
_INVERSE: Final = 7.874015718698502e-3


def encode(block: Block, *, codes: NDArray[np.int8] | None = None) -> Encoded:
    """Encode whole rows.

    Args:
        block: weights [rows, in].
        codes: a buffer for the codes, of the block's shape.

    Returns:
        Encoded: int8 codes [rows, in]; float32 SCB [rows].

    Raises:
        NonfiniteWeightError: a weight is NaN or infinite.
        ScaleOverflowError: a weight is too large for float16.
    """
    made = output(codes, block.shape, np.int8)
    found = np.empty(block.shape[0], np.float32)
    for tile in tiles(len(block), block.shape[1], block.itemsize):
        half = block[tile] if block.dtype == np.float16 else narrow(widen(block[tile]), np.dtype(np.float16))
        try:
            found[tile] = absmax.encode(half, block.shape[1], _whole, _multiply, made[tile]).scales
        except NonfiniteWeightError as e:
            row, column = divmod(tile.start * block.shape[1] + e.index, block.shape[1])
            if np.isfinite(widen(block[row, column : column + 1])).all():
                raise ScaleOverflowError(row, "float16's largest number, 65504") from None
            raise NonfiniteWeightError(row * block.shape[1] + column) from None
    return Encoded(made, found)


def decode(
    codes: NDArray[np.int8], scales: Floats, *, dtype: np.dtype[Any], block: Block | None = None
) -> Block:
    """The weights [rows, in] in `dtype`, as `int8_vectorwise_dequant` gives them in float32."""
    return absmax.decode(codes, scales, codes.shape[-1], dtype, constant=_INVERSE, block=block)


def _whole(top: Floats, _: NDArray[Any]) -> Floats:
    return top


def _multiply(weights: NDArray[Any], tops: Floats, codes: NDArray[np.int8]) -> None:
    with np.errstate(divide="ignore"):
        factors = np.float32(1) / tops * np.float32(127)
    low, high = absmax.limits(8)
    kernels.multiply(weights, factors, low, high, codes)
