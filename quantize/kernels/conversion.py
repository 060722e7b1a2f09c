"""Floats of one dtype into another, and two 4-bit codes into a byte."""

from typing import Any

import numpy as np

from ..floats import narrowed, rounded, widened
from .compiling import compiled


@compiled
def widen(bits: Any, values: Any) -> None:
    """`values` float32 of `bits`, both flat."""
    for i in range(bits.size):
        values[i] = widened(bits[i])


@compiled
def narrow(values: Any, bits: Any) -> None:
    """`bits` of `values` float32, rounded to their dtype, ties to even; both flat."""
    for i in range(values.size):
        bits[i] = narrowed(rounded(values[i], bits[i]), bits[i])


@compiled
def join_nibbles(codes: Any, offset: Any, first_high: Any, joined: Any) -> None:
    """Two 4-bit codes to a byte: `codes` [n] plus `offset`, `joined` uint8 [n / 2].

    `first_high`: the even codes take the upper half, else the lower one.

    Args:
        codes: 8-bit integers [n], n even.
        offset: added to each code first.
        first_high: whether even codes take the upper half of a byte, else the lower one.
        joined: filled, uint8 [n / 2].
    """
    # Two at once, the even one in the lower byte: single bytes would be gathered.
    pairs = codes.view(np.uint16)
    added = np.uint16(offset) * np.uint16(0x0101)
    for i in range(joined.size):
        pair = np.uint16(np.uint16(pairs[i] & np.uint16(0x0F0F)) + added)
        first, second = np.uint8(pair & np.uint16(15)), np.uint8((pair >> np.uint16(8)) & np.uint16(15))
        joined[i] = first << 4 | second if first_high else second << 4 | first


@compiled
def split_nibbles(joined: Any, offset: Any, first_high: Any, codes: Any) -> None:
    """The inverse of `join_nibbles`.

    Args:
        joined: uint8 [n / 2].
        offset: subtracted from each code.
        first_high: whether even codes are in the upper half of a byte.
        codes: filled, 8-bit integers [n].
    """
    for i in range(joined.size):
        upper = np.uint8(joined[i] >> np.uint8(4))
        lower = np.uint8(joined[i] & np.uint8(15))
        codes[2 * i] = (upper if first_high else lower) - offset
        codes[2 * i + 1] = (lower if first_high else upper) - offset
