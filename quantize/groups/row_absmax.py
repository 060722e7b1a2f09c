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

from ..kernels import absmax as loops
from . import absmax
from .blocks import Block, Encoded, Floats

#: As bitsandbytes writes 1 / 127.
_INVERSE: Final = 7.874015718698502e-3
_FORMULA: Final = absmax.Formula(
    rule=loops.ROW_ABSMAX,
    bits=8,
    steps=1,
    dtype=np.dtype(np.float16),
    limit="float16's largest number, 65504",
)


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
    return absmax.encode(block, block.shape[1], _FORMULA, codes)


def decode(
    codes: NDArray[np.int8], scales: Floats, *, dtype: np.dtype[Any], block: Block | None = None
) -> Block:
    """The weights [rows, in] in `dtype`, as `int8_vectorwise_dequant` gives them in float32.

    Args:
        codes: int8 [rows, in].
        scales: SCB, float32 [rows].
        dtype: of the weights.
        block: a buffer of the shape of `codes`; None makes one.
    """
    return absmax.decode(codes, scales, codes.shape[-1], dtype, constant=_INVERSE, block=block)
