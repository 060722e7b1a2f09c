"""Loops whose scale spans from the least to the greatest weight of a group.

`bits` and `codes` are [slabs, group, columns]: a group is a column of a slab. `scales` and `minima`, float32,
are [slabs, columns]; groups are numbered in that order. `high` float32 is the greatest code.
"""

from typing import Any, Final

import numpy as np

from ..floats import bits_of_sortable, narrowed, rounded, sortable, widened
from .compiling import compiled
from .conversion import join_nibbles

_F32: Final = np.float32
_INFINITY: Final = np.float32(np.inf)
#: So many columns of a slab stay in a core's cache between the search for extremes and the codes.
_COLUMNS: Final = 2048
#: Codes that wait for their neighbours, to share a byte with them.
_WAITING: Final = 4096


@compiled
def _scale(least: Any, greatest: Any, high: Any, like: Any) -> Any:
    """The greatest code by 1 / (greatest - least), each step rounded; NaN where no float holds it."""
    if not (abs(least) < _INFINITY and abs(greatest) < _INFINITY):
        return _F32(np.nan)
    span = rounded(greatest - least, like[0])
    scale = rounded(rounded(_F32(1) / span, like[0]) * high, like[0])
    return scale if scale > _F32(0) else _F32(np.nan)


@compiled
def _code(weight: Any, minimum: Any, scale: Any, high: Any) -> Any:
    """(weight - minimum) * scale as uint8, both steps rounded to the weight's dtype; 0 * inf is 0."""
    shifted = rounded(widened(weight) - minimum, weight)
    value = rounded(shifted * scale, weight)
    value = value if value > _F32(0) else _F32(0)
    value = value if value < high else high
    return np.uint8(np.int32(np.rint(value)))


@compiled
def _encode_rows(bits: Any, high: Any, like: Any, scales: Any, minima: Any, codes: Any) -> Any:
    """For one column: `bits` and `codes` [slabs, group], `scales` and `minima` [slabs]."""
    for g in range(bits.shape[0]):
        down = up = sortable(bits[g, 0])
        for i in range(bits.shape[1]):
            found = sortable(bits[g, i])
            down = found if found < down else down
            up = found if found > up else up
        minimum = widened(bits_of_sortable(down, like[0]))
        scale = _scale(minimum, widened(bits_of_sortable(up, like[0])), high, like)
        if scale != scale:
            return g
        scales[g], minima[g] = scale, minimum
        for i in range(bits.shape[1]):
            codes[g, i] = _code(bits[g, i], minimum, scale, high)
    return -1


@compiled
def _encode_columns(bits: Any, high: Any, like: Any, whole: Any, scales: Any, minima: Any, codes: Any) -> Any:
    # Unsigned indices, which numba does not look for negative ones among: else nothing is vectorised.
    columns, step = np.uint64(bits.shape[2]), np.uint64(_COLUMNS)
    down, up = np.empty(_COLUMNS, whole.dtype), np.empty(_COLUMNS, whole.dtype)
    low, factor = np.empty(_COLUMNS, np.float32), np.empty(_COLUMNS, np.float32)
    for g in range(bits.shape[0]):
        for begin in range(np.uint64(0), columns, step):
            width = min(step, columns - begin)
            for j in range(width):
                down[j] = up[j] = sortable(bits[g, 0, begin + j])
            for i in range(1, bits.shape[1]):
                for j in range(width):
                    found = sortable(bits[g, i, begin + j])
                    down[j] = found if found < down[j] else down[j]
                    up[j] = found if found > up[j] else up[j]
            for j in range(width):
                low[j] = widened(bits_of_sortable(down[j], like[0]))
                factor[j] = _scale(low[j], widened(bits_of_sortable(up[j], like[0])), high, like)
                if factor[j] != factor[j]:
                    return g * bits.shape[2] + np.int64(begin + j)
                scales[g, begin + j], minima[g, begin + j] = factor[j], low[j]
            for i in range(bits.shape[1]):
                for j in range(width):
                    codes[g, i, begin + j] = _code(bits[g, i, begin + j], low[j], factor[j], high)
    return -1


@compiled
def encode(bits: Any, high: Any, like: Any, whole: Any, scales: Any, minima: Any, codes: Any) -> Any:
    """`scales`, `minima` and `codes`, one byte each, of `bits`, whose dtype `like` has as well.

    Args:
        bits: raw weights [slabs, group, columns].
        high: the greatest code, float32.
        like: raw bits [1] of the weights' dtype.
        whole: an array of the signed integer type that weights are sorted as.
        scales: filled, float32 [slabs, columns].
        minima: filled, of the same shape.
        codes: filled, uint8 of the shape of `bits`.
    """
    slabs, group, columns = bits.shape
    if columns > 1:
        return _encode_columns(bits, high, like, whole, scales, minima, codes)
    flat = (slabs, group)
    return _encode_rows(
        bits.reshape(flat), high, like, scales.reshape(slabs), minima.reshape(slabs), codes.reshape(flat)
    )


@compiled
def encode_pairs(bits: Any, high: Any, like: Any, whole: Any, scales: Any, minima: Any, joined: Any) -> Any:
    """The same for 4 bits: `joined` uint8 [half as many], two neighbours to a byte, the first one above.

    Args:
        bits: raw weights [slabs, group, columns].
        high: the greatest code, float32.
        like: raw bits [1] of the weights' dtype.
        whole: an array of the signed integer type that weights are sorted as.
        scales: filled, float32 [slabs, columns].
        minima: filled, of the same shape.
        joined: filled, uint8, half as many as weights.
    """
    slabs, group, columns = bits.shape
    slab = group * columns
    # Two slabs hold an even number of codes, which fill whole bytes.
    step = max(2, _WAITING // slab // 2 * 2)
    waiting = np.empty((min(step, slabs), group, columns), np.uint8)
    for begin in range(0, slabs, step):
        end = min(begin + step, slabs)
        codes = waiting[: end - begin]
        bad = encode(bits[begin:end], high, like, whole, scales[begin:end], minima[begin:end], codes)
        if bad >= 0:
            return begin * columns + bad
        flat = codes.reshape(codes.size)
        join_nibbles(flat, np.uint8(0), True, joined[begin * slab // 2 : end * slab // 2])
    return -1


@compiled
def restore_rows(codes: Any, minima: Any, scales: Any, bits: Any) -> None:
    """For one column: `bits`, code / scale + minimum, both steps rounded to their dtype.

    Args:
        codes: uint8 [slabs, group].
        minima: float32 [slabs].
        scales: float32 [slabs].
        bits: filled with raw weights of the shape of `codes`.
    """
    for g in range(codes.shape[0]):
        minimum, scale = minima[g], scales[g]
        for i in range(codes.shape[1]):
            quotient = rounded(_F32(codes[g, i]) / scale, bits[g, i])
            bits[g, i] = narrowed(rounded(quotient + minimum, bits[g, i]), bits[g, i])


@compiled
def restore_columns(codes: Any, minima: Any, scales: Any, bits: Any) -> None:
    """The same for any number of columns.

    Args:
        codes: uint8 [slabs, group, columns].
        minima: float32 [slabs, columns].
        scales: float32 [slabs, columns].
        bits: filled with raw weights of the shape of `codes`.
    """
    for g in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            for j in range(codes.shape[2]):
                quotient = rounded(_F32(codes[g, i, j]) / scales[g, j], bits[g, i, j])
                bits[g, i, j] = narrowed(rounded(quotient + minima[g, j], bits[g, i, j]), bits[g, i, j])
