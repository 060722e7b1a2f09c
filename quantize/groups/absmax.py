"""What the formulas have in common whose scale follows from the largest absolute value of a group."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..errors import ScaleOverflowError, UnsupportedBlockError
from .blocks import Block, Encoded, Floats, chunked, largest, output, raw, tiles, widen

#: From the largest absolute values of groups, and their raw bits [groups, group], to the scales that are kept.
Rule = Callable[[Floats, NDArray[Any]], NDArray[Any]]
#: Makes codes of raw bits [groups, group] and of the scales of those groups.
Loop = Callable[[NDArray[Any], NDArray[Any], NDArray[np.int8]], None]


def limits(bits: int) -> tuple[np.float32, np.float32]:
    """The least and the greatest signed integer of `bits` bits."""
    return np.float32(-(1 << bits - 1)), np.float32((1 << bits - 1) - 1)


def encode(
    block: Block, group_numel: int, rule: Rule, loop: Loop, codes: NDArray[np.int8] | None = None
) -> Encoded:
    """Encode chunks of `group_numel` consecutive weights, and a shorter last one; scales come flat [groups].

    Raises:
        NonfiniteWeightError: a weight is NaN or infinite.
        ScaleOverflowError: `rule` finds a group too large.
        UnsupportedBlockError: the block or `codes` is not what the formulas take.
    """
    bits = raw(block).reshape(-1)
    made = output(codes, block.shape, np.int8)
    found: list[NDArray[Any]] = [rule(np.empty(0, np.float32), bits[:0].reshape(0, 1))]
    index = groups = 0
    for part, target in zip(chunked(bits, group_numel), chunked(made.reshape(-1), group_numel), strict=True):
        for tile in tiles(len(part), part.shape[1], bits.itemsize):
            top = largest(part[tile], index + tile.start * part.shape[1])
            try:
                scales = rule(top, part[tile])
            except ScaleOverflowError as e:
                raise ScaleOverflowError(groups + tile.start + e.group, e.limit) from None
            loop(part[tile], scales, target[tile])
            found.append(scales)
        index += part.size
        groups += len(part)
    return Encoded(made, np.concatenate(found))


def reencode(
    block: Block, scales: NDArray[Any], group_numel: int, loop: Loop, codes: NDArray[np.int8] | None = None
) -> NDArray[np.int8]:
    """Codes for scales that are known already: how a group too long for one block is encoded part by part."""
    made = output(codes, block.shape, np.int8)
    first = 0
    parts = zip(
        chunked(raw(block).reshape(-1), group_numel), chunked(made.reshape(-1), group_numel), strict=True
    )
    for part, target in parts:
        loop(part, scales[first : first + len(part)], target)
        first += len(part)
    return made


def decode(
    codes: NDArray[np.int8],
    scales: NDArray[Any],
    group_numel: int,
    dtype: np.dtype[Any],
    *,
    constant: float = 1.0,
    block: Block | None = None,
) -> Block:
    """Code * scale * constant in float32, rounded to a block of `dtype` (`block`, if it is given).

    Raises:
        UnsupportedBlockError: scales that are not one per group, or a buffer of another shape.
    """
    made = output(block, codes.shape, dtype.type)
    floats = widen(scales.reshape(-1))
    if floats.size != -(-codes.size // group_numel):
        raise UnsupportedBlockError(
            f"{floats.size} scales for {codes.size} codes in groups of {group_numel}; "
            f"{-(-codes.size // group_numel)} are needed"
        )
    first = 0
    parts = zip(
        chunked(codes.reshape(-1), group_numel), chunked(raw(made).reshape(-1), group_numel), strict=True
    )
    for part, target in parts:
        kernels.restore(part, floats[first : first + len(part)], np.float32(constant), target)
        first += len(part)
    return made


def require_finite(usable: NDArray[np.bool_], limit: str) -> None:
    """Check that every group can be decoded.

    Raises:
        ScaleOverflowError: one cannot, because its weights exceed `limit`.
    """
    if not usable.all():
        raise ScaleOverflowError(int(np.argmin(usable)), limit)
