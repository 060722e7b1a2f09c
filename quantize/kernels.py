"""The compiled inner loops: each passes once over the weights of a block.

Weights come as arrays of raw bits, one dtype of integers for each dtype of floats (`quantize.floats`). All
arithmetic is float32, as torch's is on a CPU, and rounded to the weights' dtype only where `rounded` says so.
Nothing is reassociated or fused: results are the same bit for bit on every machine.

Why numba, and not torch: a torch expression runs one operation after the other over the whole tensor, so
memory bounds it (measured in tests/benchmarks/quantizing.py); torch.compile needs a C++ compiler on the
user's machine; and both hold threads of their own, which would fight `--jobs`. These loops are
single-threaded and release the GIL: callers run as many of them as they have cores. Machine code is cached
beside this file.

Arguments, unless a loop says otherwise: `bits` raw weights [groups, group]; `codes` integers of that shape;
`scales` float32 [groups]; `low` and `high` float32, the least and the greatest code. All are C-contiguous.
"""

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np

from .floats import magnitude, narrowed, rounded, sortable, widened

_F32: Final = np.float32
#: Sums of squares are kept in this many lanes, added in one fixed order, so that a loop is vectorised and its
#: result still does not depend on how wide the CPU's vectors are.
_LANES: Final = 16

_Loop = Callable[..., Any]


def _compiled(loop: _Loop) -> _Loop:
    made: _Loop = numba.njit(nogil=True, cache=True, error_model="numpy")(loop)
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
def extremes_along_rows(bits: Any, least: Any, greatest: Any) -> None:
    """Each group's extremes as `sortable` integers [groups]."""
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
def squared_errors(
    bits: Any, scales: Any, low: Any, high: Any, errors: Any, best: Any, products: Any
) -> None:
    """Try one scale on every group, and keep it where it lowers the squared error.

    Every scale is positive. `errors` float32 [groups] is the least so far, lowered in place; `best` float32
    [groups], the scale that reached it, and `products` float32 [groups, 2], the sums of weight * code and of
    code * code at that scale, are replaced where it is lowered.
    """
    lanes = np.zeros((3, _LANES), np.float32)
    whole = bits.shape[1] // _LANES
    for g in range(bits.shape[0]):
        scale = scales[g]
        inverse = _F32(1) / scale
        lanes[:] = _F32(0)
        for block in range(whole + 1):
            count = _LANES if block < whole else bits.shape[1] - whole * _LANES
            for lane in range(count):
                weight = widened(bits[g, block * _LANES + lane])
                value = weight * inverse
                value = value if value > low else low
                value = value if value < high else high
                code = np.rint(value)
                error = weight - code * scale
                lanes[0, lane] += error * error
                lanes[1, lane] += weight * code
                lanes[2, lane] += code * code
        total = lanes[0].sum()
        if total < errors[g]:
            errors[g] = total
            best[g] = scale
            products[g, 0] = lanes[1].sum()
            products[g, 1] = lanes[2].sum()


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
