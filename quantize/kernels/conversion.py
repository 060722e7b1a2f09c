"""The compiled inner loops: each passes once over the weights of a block.

Weights come as arrays of raw bits, one dtype of integers for each dtype of floats (`quantize.floats`). All
arithmetic is float32, as torch's is on a CPU, and rounded to the weights' dtype only where `rounded` says so.
Nothing is reassociated or fused: results are the same bit for bit on every machine.

Why numba: plain torch runs one operation after another over the whole tensor, so memory bounds it at a tenth
of these loops' rate (tests/benchmarks/quantizing.py); numpy block by block reaches a third. torch.compile is
as fast for float32, slower for float16, and needs a C++ compiler and half a minute on the user's machine.
These loops are single-threaded and release the GIL: callers run one per core. The code is cached beside them.

Arguments, unless a loop says otherwise: `bits` raw weights [groups, group]; `codes` integers of that shape;
`scales` float32 [groups]; `low` and `high` float32, the least and the greatest code. All are C-contiguous.
"""

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np

from .floats import magnitude, narrowed, rounded, sortable, widened

_F32: Final = np.float32
#: Sums are kept in so many lanes, added in one order: vectorised, and the same however wide the vectors are.
_LANES: Final = 32

_Loop = Callable[..., Any]


def _compiled(loop: _Loop) -> _Loop:
    made: _Loop
    try:
        made = numba.njit(nogil=True, cache=True, error_model="numpy")(loop)
    except (
        RuntimeError
    ):  # No folder can be written to, neither beside this file nor the user's: compile anew.
        made = numba.njit(nogil=True, error_model="numpy")(loop)
    return made


@_compiled
def largest(bits: Any, made: Any) -> None:
    """Each group's largest absolute value, as bits: `made`, of the dtype of `bits`, [groups].

    They are compared as integers, which sorts as the values do and puts infinities and NaN on top.
    """
    for g in range(bits.shape[0]):
        top = magnitude(bits[g, 0])
        for i in range(bits.shape[1]):
            found = magnitude(bits[g, i])
            top = found if found > top else top
        made[g] = top


@_compiled
def widen(bits: Any, values: Any) -> None:
    """`values` float32 of `bits`, both flat."""
    for i in range(bits.size):
        values[i] = widened(bits[i])


@_compiled
def narrow(values: Any, bits: Any) -> None:
    """`bits` of `values` float32, rounded to their dtype, ties to even; both flat."""
    for i in range(values.size):
        bits[i] = narrowed(rounded(values[i], bits[i]), bits[i])


@_compiled
def extremes_along_rows(bits: Any, least: Any, greatest: Any) -> None:
    """Each group's extremes as `sortable` integers [groups], which NaN and infinities are extremes of."""
    for g in range(bits.shape[0]):
        down = up = sortable(bits[g, 0])
        for i in range(bits.shape[1]):
            found = sortable(bits[g, i])
            down = found if found < down else down
            up = found if found > up else up
        least[g] = down
        greatest[g] = up


@_compiled
def extremes_along_columns(bits: Any, least: Any, greatest: Any) -> None:
    """The same for `bits` [groups, group, columns], where a group is a slab's column: [groups, columns]."""
    for g in range(bits.shape[0]):
        for j in range(bits.shape[2]):
            least[g, j] = greatest[g, j] = sortable(bits[g, 0, j])
        for i in range(1, bits.shape[1]):
            for j in range(bits.shape[2]):
                found = sortable(bits[g, i, j])
                least[g, j] = found if found < least[g, j] else least[g, j]
                greatest[g, j] = found if found > greatest[g, j] else greatest[g, j]


@_compiled
def spanning_scales(least: Any, greatest: Any, high: Any, like: Any, scales: Any) -> None:
    """`scales`: high * (1 / (greatest - least)), each step rounded to the dtype of `like`; all flat."""
    for g in range(scales.size):
        span = rounded(greatest[g] - least[g], like[0])
        inverse = rounded(_F32(1) / span, like[0])
        scales[g] = rounded(inverse * high, like[0])


@_compiled
def multiply(bits: Any, factors: Any, low: Any, high: Any, codes: Any) -> None:
    """The integer nearest to weight * factor, clamped, ties to even; 0 * inf is 0."""
    for g in range(bits.shape[0]):
        factor = factors[g]
        for i in range(bits.shape[1]):
            value = widened(bits[g, i]) * factor
            value = value if value == value else _F32(0)
            value = value if value > low else low
            value = value if value < high else high
            codes[g, i] = np.int8(np.int32(np.rint(value)))


@_compiled
def divide(bits: Any, scales: Any, low: Any, high: Any, codes: Any, like: Any) -> None:
    """The integer nearest to weight / scale, the quotient rounded first; 0 / 0 is 0.

    `like`, raw bits [1] of any value, has the dtype that the quotient is rounded to.
    """
    for g in range(bits.shape[0]):
        scale = scales[g]
        for i in range(bits.shape[1]):
            value = rounded(widened(bits[g, i]) / scale, like[0])
            value = value if value == value else _F32(0)
            value = value if value > low else low
            value = value if value < high else high
            codes[g, i] = np.int8(np.int32(np.rint(value)))


@_compiled
def shift_and_multiply_rows(bits: Any, minima: Any, scales: Any, high: Any, codes: Any) -> None:
    """(weight - minimum) * scale as uint8, both steps rounded to the weights' dtype; 0 * inf is 0."""
    for g in range(bits.shape[0]):
        minimum, scale = minima[g], scales[g]
        for i in range(bits.shape[1]):
            shifted = rounded(widened(bits[g, i]) - minimum, bits[g, i])
            value = rounded(shifted * scale, bits[g, i])
            value = value if value > _F32(0) else _F32(0)
            value = value if value < high else high
            codes[g, i] = np.uint8(np.int32(np.rint(value)))


@_compiled
def shift_and_multiply_columns(bits: Any, minima: Any, scales: Any, high: Any, codes: Any) -> None:
    """The same for [groups, group, columns] and minima and scales [groups, columns]."""
    for g in range(bits.shape[0]):
        for i in range(bits.shape[1]):
            for j in range(bits.shape[2]):
                shifted = rounded(widened(bits[g, i, j]) - minima[g, j], bits[g, i, j])
                value = rounded(shifted * scales[g, j], bits[g, i, j])
                value = value if value > _F32(0) else _F32(0)
                value = value if value < high else high
                codes[g, i, j] = np.uint8(np.int32(np.rint(value)))


@_compiled
def restore(codes: Any, scales: Any, constant: Any, bits: Any) -> None:
    """`bits`: code * scale * constant, rounded to their dtype once, at the end."""
    for g in range(codes.shape[0]):
        scale = scales[g]
        for i in range(codes.shape[1]):
            value = _F32(codes[g, i]) * scale * constant
            bits[g, i] = narrowed(rounded(value, bits[g, i]), bits[g, i])


@_compiled
def restore_shifted_rows(codes: Any, minima: Any, scales: Any, bits: Any) -> None:
    """`bits`: code / scale + minimum, both steps rounded to their dtype."""
    for g in range(codes.shape[0]):
        minimum, scale = minima[g], scales[g]
        for i in range(codes.shape[1]):
            quotient = rounded(_F32(codes[g, i]) / scale, bits[g, i])
            bits[g, i] = narrowed(rounded(quotient + minimum, bits[g, i]), bits[g, i])


@_compiled
def restore_shifted_columns(codes: Any, minima: Any, scales: Any, bits: Any) -> None:
    """The same for [groups, group, columns] and minima and scales [groups, columns]."""
    for g in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            for j in range(codes.shape[2]):
                quotient = rounded(_F32(codes[g, i, j]) / scales[g, j], bits[g, i, j])
                bits[g, i, j] = narrowed(rounded(quotient + minima[g, j], bits[g, i, j]), bits[g, i, j])


@_compiled
def _code(weight: Any, inverse: Any, low: Any, high: Any) -> Any:
    value = weight * inverse
    value = value if value > low else low
    value = value if value < high else high
    return np.rint(value)


@_compiled
def _total(lanes: Any) -> Any:
    """The sum of `lanes`, which is lost; added pairwise, because one chain of additions takes longer."""
    for i in range(16):
        lanes[i] += lanes[i + 16]
    for i in range(8):
        lanes[i] += lanes[i + 8]
    for i in range(4):
        lanes[i] += lanes[i + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


@_compiled
def _squared_error(weights: Any, scale: Any, low: Any, high: Any, lanes: Any) -> Any:
    """The squared error of a group encoded with `scale`; `lanes` float32 [lanes] is scratch."""
    inverse = _F32(1) / scale
    for lane in range(_LANES):
        lanes[lane] = _F32(0)
    whole = weights.size // _LANES
    for block in range(whole):
        for lane in range(_LANES):
            weight = weights[block * _LANES + lane]
            error = weight - _code(weight, inverse, low, high) * scale
            lanes[lane] += error * error
    for lane in range(weights.size - whole * _LANES):
        weight = weights[whole * _LANES + lane]
        error = weight - _code(weight, inverse, low, high) * scale
        lanes[lane] += error * error
    return _total(lanes)


@_compiled
def _fitted(weights: Any, scale: Any, low: Any, high: Any, lanes: Any, more: Any) -> Any:
    """The scale of least squared error for the codes that `scale` gives; 0 where all are 0."""
    inverse = _F32(1) / scale
    for lane in range(_LANES):
        lanes[lane] = more[lane] = _F32(0)
    whole = weights.size // _LANES
    for block in range(whole):
        for lane in range(_LANES):
            weight = weights[block * _LANES + lane]
            code = _code(weight, inverse, low, high)
            lanes[lane] += weight * code
            more[lane] += code * code
    for lane in range(weights.size - whole * _LANES):
        weight = weights[whole * _LANES + lane]
        code = _code(weight, inverse, low, high)
        lanes[lane] += weight * code
        more[lane] += code * code
    across = _total(more)
    return _total(lanes) / across if across > _F32(0) else _F32(0)


@_compiled
def search(
    bits: Any, covering: Any, shares: Any, smallest: Any, low: Any, high: Any, like: Any, scales: Any
) -> None:
    """`scales`: each group's of least squared error among those tried, as `quantize.groups.search` says.

    `covering` float32 [groups] are tried first, then they times each of `shares`, float32. No scale is less
    than `smallest`; all are rounded to the dtype of `like`, raw bits [1].
    """
    lanes = np.empty(_LANES, np.float32)
    more = np.empty(_LANES, np.float32)
    weights = np.empty(bits.shape[1], np.float32)
    for g in range(bits.shape[0]):
        for i in range(bits.shape[1]):
            weights[i] = widened(bits[g, i])
        best = max(covering[g], smallest)
        least = _squared_error(weights, best, low, high, lanes)
        for trial in range(shares.size + 1):
            if trial < shares.size:
                tried = rounded(covering[g] * shares[trial], like[0])
            else:
                tried = rounded(_fitted(weights, best, low, high, lanes, more), like[0])
            tried = max(tried, smallest)
            error = _squared_error(weights, tried, low, high, lanes)
            if error < least:
                least, best = error, tried
        scales[g] = best


@_compiled
def join_nibbles(codes: Any, offset: Any, first_high: Any, joined: Any) -> None:
    """Two 4-bit codes to a byte: `codes` [n] plus `offset`, `joined` uint8 [n / 2].

    `first_high`: the even codes take the upper half, else the lower one.
    """
    for i in range(joined.size):
        first = np.uint8(codes[2 * i] + offset) & np.uint8(15)
        second = np.uint8(codes[2 * i + 1] + offset) & np.uint8(15)
        joined[i] = first << 4 | second if first_high else second << 4 | first


@_compiled
def split_nibbles(joined: Any, offset: Any, first_high: Any, codes: Any) -> None:
    """The inverse of `join_nibbles`."""
    for i in range(joined.size):
        upper = np.uint8(joined[i] >> np.uint8(4))
        lower = np.uint8(joined[i] & np.uint8(15))
        codes[2 * i] = (upper if first_high else lower) - offset
        codes[2 * i + 1] = (lower if first_high else upper) - offset
