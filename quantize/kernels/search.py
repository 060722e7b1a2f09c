"""The loop that searches a group's scale for the least squared error, as `quantize.groups.search` says."""

from typing import Any, Final

import numpy as np

from ..floats import rounded, widened
from .absmax import SYMMETRIC, largest_of, multiply, scale_of
from .compiling import compiled, inlined
from .whole import LANES, LARGEST, PARTS, SUMMED, add_squared_misses, code_products

_F32: Final = np.float32
#: float16 has no normal scale this small; the inverse of a much smaller float32 is infinite.
_SMALLEST: Final = np.float32(2.0**-126)
#: A group of smaller weights than this keeps the scale that covers it: their reciprocals may be infinite.
_LEAST_TOP: Final = np.float32(2.0**-100)
#: From a group's largest weight to the factor of a scale, times that scale.
_UNIT: Final = np.float32(PARTS * 65536 / LARGEST)
#: So much more than a scale of the grid asks for may its factor be, where scales are coarse.
_SLACK: Final = np.float32(1.1)
#: So many weights, of one group or several, are dealt with together.
_AT_ONCE: Final = 8192
#: Misses in 64ths of a code tell errors apart that differ by 2 %, if they are of as many weights as this or
#: more, each of which misses by a third of a code as is usual. What is closer, or less, is compared exactly.
_CLEAR: Final = 0.98
_ENOUGH: Final = 64 * PARTS**2 / 12


@compiled
def _error(weight: Any, scale: Any, inverse: Any, low: Any, high: Any) -> Any:
    value = weight * inverse
    value = value if value > low else low
    value = value if value < high else high
    return weight - np.rint(value) * scale


@compiled
def _squared_error(bits: Any, g: Any, scale: Any, low: Any, high: Any, lanes: Any) -> Any:
    """The squared error of a group encoded with `scale`.

    Sums are kept in `lanes`, added in one order: the same however wide vectors are.
    """
    inverse = _F32(1) / scale
    for lane in range(LANES):
        lanes[lane] = _F32(0)
    whole = bits.shape[1] // LANES
    for block in range(whole):
        for lane in range(LANES):
            error = _error(widened(bits[g, block * LANES + lane]), scale, inverse, low, high)
            lanes[lane] += error * error
    for lane in range(bits.shape[1] - whole * LANES):
        error = _error(widened(bits[g, whole * LANES + lane]), scale, inverse, low, high)
        lanes[lane] += error * error
    for i in range(16):
        lanes[i] += lanes[i + 16]
    for i in range(8):
        lanes[i] += lanes[i + 8]
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))


@inlined
def _prepare(bits: Any, g: Any, top: Any, weights: Any, n: Any) -> None:
    """Group `g` as whole numbers of its largest weight."""
    ratio = _F32(LARGEST) / max(top, _LEAST_TOP)
    for i in range(bits.shape[1]):
        weights[n, i] = np.int16(np.int32(np.rint(widened(bits[g, i]) * ratio)))


@inlined
def _try(
    covering: Any, top: Any, shares: Any, limit: Any, like: Any, tried: Any, factors: Any, n: Any
) -> None:
    """The scales that are tried for a group, and their factors; 0 where one is too large."""
    for j in range(shares.size):
        scale = max(rounded(covering * shares[j], like[0]), _SMALLEST)
        factor = np.rint(_UNIT * top / scale)
        tried[n, j] = scale
        factors[n, j] = np.int16(np.int32(factor if factor <= limit else _F32(0)))


@inlined
def _miss(weights: Any, low: Any, high: Any, factors: Any, tried: Any, errors: Any, n: Any) -> None:
    """The squared errors of a group for each of the scales tried, in parts of the first one."""
    width, count = weights.shape[1], factors.shape[1]
    for j in range(count):
        errors[n, j] = 0.0
    for begin in range(n * width, (n + 1) * width, SUMMED):
        end = min(begin + SUMMED, (n + 1) * width)
        add_squared_misses(weights, begin, end, low, high, factors, n * count, (n + 1) * count, errors)
    for j in range(count):
        share = tried[n, j] / tried[n, 0]
        errors[n, j] *= np.float64(share * share) if factors[n, j] != 0 else np.inf


@inlined
def _least(errors: Any, n: Any) -> Any:
    """Which error is least; without branches, half of which a CPU would not foresee."""
    found, least = 0, errors[n, 0]
    for j in range(1, errors.shape[1]):
        is_less = errors[n, j] < least
        least = errors[n, j] if is_less else least
        found = j if is_less else found
    return found


@inlined
def _fit(weights: Any, low: Any, high: Any, factor: Any, n: Any) -> Any:
    """The scale of least squared error for the codes of a factor, as a share of the factor's own."""
    width = weights.shape[1]
    along = across = 0
    for begin in range(n * width, (n + 1) * width, SUMMED):
        end = min(begin + SUMMED, (n + 1) * width)
        products = code_products(weights, begin, end, low, high, factor)
        along += int(products[0])
        across += int(products[1])
    return _F32(along) / _F32(PARTS * across) if across > 0 else _F32(0)


@inlined
def _nearer(best: Any, fitted: Any, like: Any) -> Any:
    """`fitted`, if rounding leaves it nearer to itself than `best` is; else `best`.

    For the same codes the error is a parabola of the scale, and a scale's nearest codes only gain.
    """
    kept = max(rounded(fitted, like[0]), _SMALLEST)
    return kept if abs(kept - fitted) < abs(best - fitted) else best


@compiled
def encode(
    bits: Any, shares: Any, steps: Any, epsilon: Any, low: Any, high: Any, like: Any, unrounded: Any,
    scales: Any, codes: Any,
) -> Any:  # fmt: skip
    """`scales` and `codes` of `bits`.

    The scale that covers a group is tried first, then it times each of `shares`, float32, of which the first
    is 1. All are rounded to the dtype of `like`; `unrounded` is of float32.

    Every step is done for several groups before the next: one group's steps wait for each other.

    Args:
        bits: raw weights [groups, group].
        shares: of the covering scale, float32; the first is 1.
        steps: what the rule divides by, float32.
        epsilon: the scale in the place of 0, float32.
        low: the least code, float32.
        high: the greatest code, float32.
        like: raw bits [1] of any value, whose dtype says what is rounded to.
        unrounded: raw bits [1] of float32: weights are not rounded before they are multiplied.
        scales: filled, float32 [groups].
        codes: filled, int8 of the shape of `bits`.
    """
    width, count = -(-bits.shape[1] // LANES) * LANES, shares.size
    several = max(1, _AT_ONCE // width)
    weights, tops = np.zeros((several, width), np.int16), np.empty(several, np.float32)
    tried, factors = np.empty((several, count), np.float32), np.empty((several, count), np.int16)
    errors, chosen = np.empty((several, count), np.float64), np.empty(several, np.int64)
    lanes = np.empty(LANES, np.float32)
    limit = _SLACK * _UNIT * steps / min(shares)
    bottom, ceiling = np.int16(low * PARTS), np.int16(high * PARTS)
    for begin in range(0, bits.shape[0], several):
        part = min(several, bits.shape[0] - begin)
        for n in range(part):
            tops[n] = widened(largest_of(bits, begin + n))
            scale = scale_of(SYMMETRIC, tops[n], steps, epsilon, like)
            if scale != scale:
                return begin + n
            scales[begin + n] = max(scale, _SMALLEST)
        for n in range(part):
            _prepare(bits, begin + n, tops[n], weights, n)
            _try(scales[begin + n], tops[n], shares, limit, like, tried, factors, n)
        for n in range(part):
            _miss(weights, bottom, ceiling, factors, tried, errors, n)
        for n in range(part):
            chosen[n] = _least(errors, n)
        for n in range(part):
            j, covering = chosen[n], scales[begin + n]
            if tops[n] < _LEAST_TOP or factors[n, j] == 0:
                continue
            fitted = _UNIT * tops[n] / factors[n, j] * _fit(weights, bottom, ceiling, factors[n, j], n)
            best = _nearer(tried[n, j], fitted, like)
            if best == covering:
                continue
            if _ENOUGH < errors[n, j] < errors[n, 0] * _CLEAR:
                scales[begin + n] = best
            else:
                error = _squared_error(bits, begin + n, best, low, high, lanes)
                if error < _squared_error(bits, begin + n, covering, low, high, lanes):
                    scales[begin + n] = best
        for n in range(part):
            multiply(bits, begin + n, _F32(1) / scales[begin + n], low, high, unrounded, codes)
    return -1
