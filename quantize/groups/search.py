"""Symmetric integers whose scale is searched for the least squared error of its group.

The format is `symmetric`'s: what reads that reads this, and the bytes are as many. The scale that just covers
the largest weight is rarely the best: a smaller one clips that weight and is finer for all the others. Per
group, some scales around it are tried, then the least-squares scale for the codes that the best one gave,
sum(x * q) / sum(q * q), where it is nearer to that than the best one. `symmetric`'s own scale is tried first,
and the error is never above its. Scales are rounded to the weights' dtype before they are tried; codes are
round(clamp(x * (1 / scale))) in float32, rounded once.

Errors are compared as sums of whole numbers, squares of 64ths of a code, which is four times as fast as in
float32 and tells the same scales apart but where they are equally good (`quantize.kernels.whole`).
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..kernels import search as loops
from . import absmax, symmetric
from .blocks import Block, Encoded, Floats

decode = symmetric.decode

#: By bits: shares of the covering scale that are tried, four or a multiple, 1 before all others.
#: Chosen on normal and heavy-tailed weights in groups of 128 and of 2048. For 8 bits a little over 1 pays
#: as well: the covering scale maps the largest weight to 127.5, half way between two codes.
SHARES: Final = {
    8: np.array([1, 0.978, 0.984, 0.989, 0.994, 1.006, 1.012, 1.02], np.float32),
    4: np.array([1 + 0.04 * i for i in (0, *range(-13, 0), 1, 2)], np.float32),
}


def encode(
    block: Block, *, group_size: int | None = 128, bits: int = 8, codes: NDArray[np.int8] | None = None
) -> Encoded:
    """Encode whole rows; arguments, results and errors are those of `symmetric.encode`.

    Args:
        block: float weights [rows, in].
        group_size: weights per scale, along `in`; None: one scale per row.
        bits: 4 or 8.
        codes: a buffer, int8 of the block's shape; None makes one.
    """
    formula, (low, high) = symmetric.formula(block.dtype, bits), absmax.limits(bits)
    shares = SHARES[bits]
    unrounded = np.zeros(1, np.uint32)

    def loop(part: NDArray[Any], scales: Floats, group_codes: NDArray[np.int8]) -> int:
        steps, epsilon, like = np.float32(formula.steps), formula.epsilon, formula.like
        return int(
            loops.encode(part, shares, steps, epsilon, low, high, like, unrounded, scales, group_codes)
        )

    numel = symmetric.group_numel(block.shape, group_size)
    encoded = absmax.encode_by(block, numel, loop, formula, codes)
    return Encoded(encoded.codes, encoded.scales.reshape(block.shape[0], -1))
