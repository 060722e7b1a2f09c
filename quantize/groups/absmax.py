"""What the formulas have in common whose scale follows from the largest absolute value of a group."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..errors import ScaleOverflowError, UnsupportedBlockError
from .blocks import Block, Encoded, Floats, chunked, largest, output, raw, tiles, widen

#: From the largest absolute values of groups, and their raw bits [groups, group], to the scales that stay.
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
    index = 0
    for (group, part), target in _both(bits, made, group_numel):
        for tile in tiles(len(part), part.shape[1], bits.itemsize):
            top = largest(part[tile], index + tile.start * part.shape[1])
            try:
                scales = rule(top, part[tile])
            except ScaleOverflowError as e:
                raise ScaleOverflowError(group + tile.start + e.group, e.limit) from None
            loop(part[tile], scales, target[tile])
            found.append(scales)
        index += part.size
    return Encoded(made, np.concatenate(found))


def encode_part(
    block: Block,
    scales: NDArray[Any],
    group_numel: int,
    loop: Loop,
    first: int = 0,
    codes: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Codes of a part of a tensor that begins at weight `first`, for scales of all of the tensor's groups."""
    made = output(codes, block.shape, np.int8)
    for (group, part), target in _both(raw(block).reshape(-1), made, group_numel, first):
        loop(part, scales[group : group + len(part)], target)
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
    for (group, part), target in _both(codes.reshape(-1), raw(made), group_numel):
        kernels.restore(part, floats[group : group + len(part)], np.float32(constant), target)
    return made


def decode_part(
    codes: NDArray[np.int8], scales: NDArray[Any], group_numel: int, dtype: np.dtype[Any], first: int
) -> Block:
    """Code * scale of a part of a tensor that begins at weight `first`, for scales of all of its groups."""
    made = np.empty(codes.shape, dtype)
    for (group, part), target in _both(codes.reshape(-1), raw(made), group_numel, first):
        kernels.restore(part, scales[group : group + len(part)], np.float32(1), target)
    return made


def require_finite(usable: NDArray[np.bool_], limit: str) -> None:
    """Check that every group can be decoded.

    Raises:
        ScaleOverflowError: one cannot, because its weights exceed `limit`.
    """
    if not usable.all():
        raise ScaleOverflowError(int(np.argmin(usable)), limit)


def _both(
    given: NDArray[Any], made: NDArray[Any], group_numel: int, first: int = 0
) -> Iterator[tuple[tuple[int, NDArray[Any]], NDArray[Any]]]:
    """The chunks of a flat array, and those of another one of the same size."""
    targets = chunked(made.reshape(-1), group_numel, first)
    for chunk, (_, target) in zip(chunked(given, group_numel, first), targets, strict=True):
        yield chunk, target
