"""Loops whose scale follows from the largest absolute value of a group."""

from typing import Any, Final

import numpy as np

from ..floats import magnitude, narrowed, rounded, widened
from .compiling import compiled, inlined

_F32: Final = np.float32
_INFINITY: Final = np.float32(np.inf)

#: By which formula a group's scale follows from its largest absolute value; `quantize.groups` has a module
#: for each, which says where it comes from.
MOQ: Final = 0
ROWS: Final = 1
SYMMETRIC: Final = 2
ROW_ABSMAX: Final = 3


# Groups are passed as an array and a number: a slice costs as much as a short group does.


@inlined
def largest_of(bits: Any, g: Any) -> Any:
    """The largest absolute value of a group, as bits.

    They are compared as integers, which sorts as the values do and puts infinities and NaN on top.
    """
    top = magnitude(bits[g, 0])
    for i in range(bits.shape[1]):
        found = magnitude(bits[g, i])
        top = found if found > top else top
    return top


@compiled
def largest(bits: Any, made: Any) -> None:
    """Each group's largest absolute value, as bits: `made`, of the dtype of `bits`, [groups]."""
    for g in range(bits.shape[0]):
        made[g] = largest_of(bits, g)


@inlined
def scale_of(rule: Any, top: Any, steps: Any, epsilon: Any, like: Any) -> Any:
    """The scale of a group whose largest absolute value is `top`, or NaN where no float holds it.

    `steps`, float32, is what the rule divides by, and `epsilon` the scale in the place of 0.

    Args:
        rule: one of this module's rules.
        top: the group's largest absolute value, float32.
        steps: what the rule divides by, float32.
        epsilon: the scale in the place of 0, float32.
        like: raw bits [1] of any value, whose dtype says what is rounded to.
    """
    if not rounded(top, like[0]) < _INFINITY:
        return _F32(np.nan)
    if rule == ROW_ABSMAX:
        return rounded(top, like[0])
    if rule == SYMMETRIC:
        scale = rounded(top / steps, like[0])
        return scale if scale > _F32(0) else epsilon
    if not _F32(2) * top < _INFINITY:
        return _F32(np.nan)
    if rule == MOQ:
        return _F32(1) / (_F32(2) * top + _F32(1e-5)) * steps
    return top * _F32(2) / steps


@compiled
def scales_of(rule: Any, tops: Any, steps: Any, epsilon: Any, like: Any, scales: Any) -> Any:
    """`scales` of groups whose largest absolute values are `tops`, float32 [groups].

    Args:
        rule: one of this module's rules.
        tops: the groups' largest absolute values, float32 [groups].
        steps: what the rule divides by, float32.
        epsilon: the scale in the place of 0, float32.
        like: raw bits [1] of any value, whose dtype says what is rounded to.
        scales: filled, float32 [groups].
    """
    for g in range(tops.size):
        scales[g] = scale_of(rule, tops[g], steps, epsilon, like)
        if scales[g] != scales[g]:
            return g
    return -1


@inlined
def multiply(bits: Any, g: Any, factor: Any, low: Any, high: Any, like: Any, codes: Any) -> None:
    """The integer nearest to weight * factor, the weight rounded first; clamped; 0 * inf is 0.

    Args:
        bits: raw weights [groups, group].
        g: the group's number.
        factor: what weights are multiplied by, float32.
        low: the least code, float32.
        high: the greatest code, float32.
        like: raw bits [1] of any value, whose dtype says what is rounded to.
        codes: filled in row `g`.
    """
    for i in range(bits.shape[1]):
        value = rounded(widened(bits[g, i]), like[0]) * factor
        value = value if value == value else _F32(0)
        value = value if value > low else low
        value = value if value < high else high
        codes[g, i] = np.int8(np.int32(np.rint(value)))


@inlined
def _divide(bits: Any, g: Any, scale: Any, low: Any, high: Any, like: Any, codes: Any) -> None:
    """The integer nearest to weight / scale, the quotient rounded first; 0 / 0 is 0."""
    for i in range(bits.shape[1]):
        value = rounded(widened(bits[g, i]) / scale, like[0])
        value = value if value == value else _F32(0)
        value = value if value > low else low
        value = value if value < high else high
        codes[g, i] = np.int8(np.int32(np.rint(value)))


@inlined
def _encode_group(
    rule: Any, bits: Any, g: Any, scale: Any, low: Any, high: Any, like: Any, codes: Any
) -> None:
    if rule == MOQ:
        multiply(bits, g, scale, low, high, like, codes)
    elif rule == ROW_ABSMAX:
        multiply(bits, g, _F32(1) / scale * high, low, high, like, codes)
    else:
        _divide(bits, g, scale, low, high, like, codes)


@compiled
def encode(
    rule: Any, bits: Any, steps: Any, epsilon: Any, low: Any, high: Any, like: Any, scales: Any, codes: Any
) -> Any:
    """`scales` and `codes` of `bits`.

    Args:
        rule: one of this module's rules.
        bits: raw weights [groups, group].
        steps: what the rule divides by, float32.
        epsilon: the scale in the place of 0, float32.
        low: the least code, float32.
        high: the greatest code, float32.
        like: raw bits [1] of any value, whose dtype says what is rounded to.
        scales: filled, float32 [groups].
        codes: filled, int8 of the shape of `bits`.
    """
    for g in range(bits.shape[0]):
        scale = scale_of(rule, widened(largest_of(bits, g)), steps, epsilon, like)
        if scale != scale:
            return g
        scales[g] = scale
        _encode_group(rule, bits, g, scale, low, high, like, codes)
    return -1


@compiled
def encode_with(rule: Any, bits: Any, scales: Any, low: Any, high: Any, like: Any, codes: Any) -> None:
    """`codes` of `bits`, whose `scales` are known.

    Args:
        rule: one of this module's rules.
        bits: raw weights [groups, group].
        scales: float32 [groups].
        low: the least code, float32.
        high: the greatest code, float32.
        like: raw bits [1] of any value, whose dtype says what is rounded to.
        codes: filled, int8 of the shape of `bits`.
    """
    for g in range(bits.shape[0]):
        _encode_group(rule, bits, g, scales[g], low, high, like, codes)


@compiled
def restore(codes: Any, scales: Any, constant: Any, bits: Any) -> None:
    """`bits`: code * scale * constant, rounded to their dtype once, at the end.

    Args:
        codes: int8 [groups, group].
        scales: float32 [groups].
        constant: multiplied in as well, float32.
        bits: filled with raw weights of that shape.
    """
    for g in range(codes.shape[0]):
        scale = scales[g]
        for i in range(codes.shape[1]):
            value = _F32(codes[g, i]) * scale * constant
            bits[g, i] = narrowed(rounded(value, bits[g, i]), bits[g, i])
