"""Symmetric integers whose scale is searched for the least squared error of its group.

The format is `symmetric`'s: what reads that reads this, and the bytes are as many. The scale that just covers
the largest weight is rarely the best: a smaller one clips that weight and is finer for all the others. Per
group, a grid of scales around it is tried, then the least-squares scale for the codes that the best one gave,
sum(x * q) / sum(q * q); the one with the least squared error stays. `symmetric`'s own scale is tried first,
so the error is never above its. Scales are rounded to the weights' dtype before they are tried; codes are
round(clamp(x * (1 / scale))) in float32, rounded once.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from . import absmax, symmetric
from .blocks import Block, Encoded, Floats, narrow, raw, widen

decode = symmetric.decode

#: By bits: how many scales are tried, and the first and the last as shares of the one that covers the group.
#: Chosen on normal weights in groups of 128 and of 4096; a finer grid gains less than 1 % in squared error.
_GRIDS: Final = {8: (12, 0.96, 1.01), 4: (16, 0.5, 1.06)}
#: float16 has no normal scale this small; the inverse of a much smaller float32 is infinite.
_SMALLEST: Final = np.float32(2.0**-126)


def encode(
    block: Block, *, group_size: int | None = 128, bits: int = 8, codes: NDArray[np.int8] | None = None
) -> Encoded:
    """Encode whole rows; arguments, results and errors are those of `symmetric.encode`."""
    found = absmax.encode(
        block,
        symmetric.group_numel(block.shape, group_size),
        lambda top, part: scale(top, part, block.dtype, bits),
        _loop(bits),
        codes,
    )
    return Encoded(found.codes, found.scales.reshape(block.shape[0], -1))


def scale(magnitudes: Floats, weights: NDArray[Any], dtype: np.dtype[Any], bits: int = 8) -> Block:
    """The best scale of each group found, in a block's `dtype`, for raw bits `weights` [groups, group]."""
    low, high = absmax.limits(bits)
    count, first, last = _GRIDS[bits]
    shares = np.linspace(first, last, count, dtype=np.float32)
    covering = widen(symmetric.scale(magnitudes, dtype, bits))
    best = np.empty_like(covering)
    like = raw(np.zeros(1, dtype))
    kernels.search(weights, covering, shares, _SMALLEST, low, high, like, best)
    return narrow(best, dtype)


def _loop(bits: int) -> absmax.Loop:
    low, high = absmax.limits(bits)
    return lambda part, scales, codes: kernels.multiply(part, np.float32(1) / widen(scales), low, high, codes)
