"""Sums of 16-bit whole numbers in vectors, against Python's own integers."""

from typing import Any

import numba
import numpy as np
import pytest

from quantize.kernels.whole import (
    LANES,
    LARGEST,
    PARTS,
    SUMMED,
    TOGETHER,
    add_squared_misses,
    code_products,
)


@numba.njit
def _errors(weights: Any, low: Any, high: Any, factors: Any, sums: Any) -> None:
    add_squared_misses(weights, 0, weights.size, low, high, factors, 0, factors.size, sums)


@numba.njit
def _products(weights: Any, low: Any, high: Any, factor: Any) -> Any:
    return code_products(weights, 0, weights.size, low, high, factor)


def _by_hand(weight: int, factor: int, low: int, high: int) -> tuple[int, int]:
    """A weight in parts and its code: the nearest one, half a code upwards, between the extremes."""
    parts = weight * factor >> 16
    return parts, (min(max(parts, low), high) + PARTS // 2) // PARTS


def _check(weights: np.ndarray[Any, np.dtype[np.int16]], factors: list[int], low: int, high: int) -> None:
    made = np.zeros(len(factors))
    bounds = np.int16(low), np.int16(high)
    _errors(weights, *bounds, np.array(factors, np.int16), made)
    for factor, found in zip(factors, made, strict=True):
        pairs = [_by_hand(int(w), factor, low, high) for w in weights]
        assert found == sum((parts - PARTS * code) ** 2 for parts, code in pairs)
        expected = sum(p * c for p, c in pairs), sum(c * c for _, c in pairs)
        assert _products(weights, *bounds, np.int16(factor)) == expected


@pytest.mark.parametrize("bits,middle", [(8, 16321), (4, 960)])
def test_sums_are_those_of_whole_numbers(bits: int, middle: int) -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-LARGEST, LARGEST, 5 * LANES, np.int16, endpoint=True)
    factors = [middle + step for step in range(-TOGETHER, TOGETHER)]
    _check(weights, factors, -(PARTS << bits - 1), (PARTS << bits - 1) - PARTS)


@pytest.mark.parametrize("bits,most", [(8, 18360), (4, 2200)])
@pytest.mark.parametrize("weight", [LARGEST, -LARGEST])
def test_the_largest_sums_do_not_overflow(bits: int, most: int, weight: int) -> None:
    """As many of the largest weight as are summed at once, by the largest factor that the search takes.

    That is 1.1 * 64 * 65536 / 32767 * (2^bits - 1) / 2, by the least share: 0.978 for 8 bits, 0.48 for 4.
    """
    weights = np.full(SUMMED, weight, np.int16)
    _check(weights, [most] * TOGETHER, -(PARTS << bits - 1), (PARTS << bits - 1) - PARTS)
