"""Shared by the formulas whose scale follows from the largest absolute value of a group."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ScaleOverflowError, UnsupportedBlockError
from ..kernels import absmax as loops
from .blocks import Block, Encoded, Floats, chunked, largest, narrow, output, raw, widen

#: Raw bits [groups, group], scales and codes to fill → the first group that has no scale, or -1.
Loop = Callable[[NDArray[Any], Floats, NDArray[np.int8]], int]


class Formula(NamedTuple):
    """One of `quantize.kernels.absmax`'s rules, with its settings.

    Attributes:
        rule: the loops' name for it.
        bits: per code.
        steps: what the rule divides by.
        dtype: of a block, what intermediate values are rounded to.
        scale_dtype: of a block, what scales are stored in; they are rounded to it already.
        epsilon: the scale in the place of 0.
        limit: what weights exceed whose scale no float holds, in words.
    """

    rule: int
    bits: int
    steps: float
    dtype: np.dtype[Any] = np.dtype(np.float32)
    scale_dtype: np.dtype[Any] = np.dtype(np.float32)
    epsilon: np.float32 = np.float32(0)
    limit: str = "the range of float32"

    @property
    def like(self) -> NDArray[Any]:
        """The dtype as the loops take it."""
        return raw(np.zeros(1, self.dtype))


def limits(bits: int) -> tuple[np.float32, np.float32]:
    """The least and the greatest signed integer of `bits` bits."""
    return np.float32(-(1 << bits - 1)), np.float32((1 << bits - 1) - 1)


def scales(formula: Formula, magnitudes: Floats) -> Block:
    """The scale of each group from its largest absolute value, float32 [groups].

    Raises:
        ScaleOverflowError: a group is too large for one.
    """
    scale_of_group = np.empty(magnitudes.size, np.float32)
    steps = np.float32(formula.steps)
    bad = loops.scales_of(formula.rule, magnitudes, steps, formula.epsilon, formula.like, scale_of_group)
    if bad >= 0:
        raise ScaleOverflowError(bad, formula.limit)
    return narrow(scale_of_group, formula.scale_dtype)


def encode(
    block: Block, group_numel: int, formula: Formula, codes: NDArray[np.int8] | None = None
) -> Encoded:
    """Encode chunks of `group_numel` consecutive weights, and a shorter last one; scales come flat [groups].

    Args:
        block: weights of any shape.
        group_numel: weights per group.
        formula: which rule, and its settings.
        codes: a buffer, int8 of the block's shape; None makes one.

    Raises:
        NonfiniteWeightError: a weight is NaN or infinite.
        ScaleOverflowError: a group is too large for a scale.
        UnsupportedBlockError: the block or `codes` is not what the formulas take.
    """

    def loop(part: NDArray[Any], group_scales: Floats, group_codes: NDArray[np.int8]) -> int:
        steps, (low, high) = np.float32(formula.steps), limits(formula.bits)
        rule, epsilon, like = formula.rule, formula.epsilon, formula.like
        return int(loops.encode(rule, part, steps, epsilon, low, high, like, group_scales, group_codes))

    return encode_by(block, group_numel, loop, formula, codes)


def encode_by(
    block: Block, group_numel: int, loop: Loop, formula: Formula, codes: NDArray[np.int8] | None = None
) -> Encoded:
    """The same by another loop, which fills scales and codes and returns the first bad group, or -1.

    Args:
        block: weights of any shape.
        group_numel: weights per group.
        loop: fills scales and codes, and returns the first group without a scale, or -1.
        formula: says how scales are stored and what exceeds them.
        codes: a buffer, int8 of the block's shape; None makes one.
    """
    bits = raw(block).reshape(-1)
    all_codes = output(codes, block.shape, np.int8)
    all_scales = np.empty(-(-bits.size // group_numel), np.float32)
    index = 0
    for (group, part), target in _both(bits, all_codes, group_numel):
        bad = loop(part, all_scales[group : group + len(part)], target)
        if bad >= 0:
            # Says so if it is for a weight that is not finite.
            largest(part[bad : bad + 1], index + bad * part.shape[1])
            raise ScaleOverflowError(group + bad, formula.limit)
        index += part.size
    return Encoded(all_codes, narrow(all_scales, formula.scale_dtype))


def encode_part(
    block: Block,
    scales: NDArray[Any],
    group_numel: int,
    formula: Formula,
    first: int = 0,
    codes: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Codes of a part of a tensor that begins at weight `first`, for scales of all of the tensor's groups.

    Args:
        block: consecutive weights, of any shape.
        scales: of all of the tensor's groups.
        group_numel: weights per group of the tensor.
        formula: which rule, and its settings.
        first: where in the flattened tensor the block begins.
        codes: a buffer, int8 of the block's shape; None makes one.
    """
    part_codes = output(codes, block.shape, np.int8)
    low, high = limits(formula.bits)
    for (group, part), target in _both(raw(block).reshape(-1), part_codes, group_numel, first):
        part_scales = scales[group : group + len(part)]
        loops.encode_with(formula.rule, part, part_scales, low, high, formula.like, target)
    return part_codes


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

    Args:
        codes: int8 of any shape.
        scales: one per group.
        group_numel: codes per group.
        dtype: of the block that is made.
        constant: multiplied in as well.
        block: a buffer of the shape of `codes`; None makes one.

    Raises:
        UnsupportedBlockError: scales that are not one per group, or a buffer of another shape.
    """
    weights = output(block, codes.shape, dtype.type)
    floats = widen(scales.reshape(-1))
    if floats.size != -(-codes.size // group_numel):
        raise UnsupportedBlockError(
            f"{floats.size} scales for {codes.size} codes in groups of {group_numel}; "
            f"{-(-codes.size // group_numel)} are needed"
        )
    for (group, part), target in _both(codes.reshape(-1), raw(weights), group_numel):
        loops.restore(part, floats[group : group + len(part)], np.float32(constant), target)
    return weights


def decode_part(
    codes: NDArray[np.int8], scales: NDArray[Any], group_numel: int, dtype: np.dtype[Any], first: int
) -> Block:
    """Code * scale of a part of a tensor that begins at weight `first`, for scales of all of its groups.

    Args:
        codes: int8, consecutive ones of a tensor.
        scales: of all of the tensor's groups.
        group_numel: codes per group of the tensor.
        dtype: of the block that is made.
        first: where in the flattened tensor the codes begin.
    """
    weights = np.empty(codes.shape, dtype)
    for (group, part), target in _both(codes.reshape(-1), raw(weights), group_numel, first):
        loops.restore(part, scales[group : group + len(part)], np.float32(1), target)
    return weights


def _both(
    given: NDArray[Any], made: NDArray[Any], group_numel: int, first: int = 0
) -> Iterator[tuple[tuple[int, NDArray[Any]], NDArray[Any]]]:
    """The chunks of a flat array, and those of another one of the same size."""
    targets = chunked(made.reshape(-1), group_numel, first)
    for chunk, (_, target) in zip(chunked(given, group_numel, first), targets, strict=True):
        yield chunk, target
