"""Blocks of weights: the arguments and results of every formula.

A block is a C-contiguous numpy array, of a whole tensor or of a part that holds whole groups. Its dtype is
float32, float16, or uint16 for the bits of bfloat16, which numpy does not have. Scales and minima that a
formula keeps in the weights' dtype come the same way.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import GroupSizeError, NonfiniteWeightError, UnsupportedBlockError
from ..kernels import absmax, conversion

Block = NDArray[Any]
Floats = NDArray[np.float32]

_RAW: Final[dict[np.dtype[Any], np.dtype[Any]]] = {
    np.dtype(np.float32): np.dtype(np.uint32),
    np.dtype(np.float16): np.dtype(np.int16),
    np.dtype(np.uint16): np.dtype(np.uint16),
}
_FLOATS: Final[dict[np.dtype[Any], np.dtype[Any]]] = {bits: floats for floats, bits in _RAW.items()}
_OF_CHECKPOINT: Final[dict[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}
_INFINITY: Final[dict[np.dtype[Any], int]] = {
    np.dtype(np.uint32): 0x7F800000,
    np.dtype(np.int16): 0x7C00,
    np.dtype(np.uint16): 0x7F80,
}


class Encoded(NamedTuple):
    """Integers, and what turns them back into weights.

    Attributes:
        codes: int8 or uint8, of the block's shape unless two 4-bit codes share a byte.
        scales: one per group, in the shape and dtype that the formula's runtime keeps.
        minimum: one per group as well, for formulas that have one.
    """

    codes: NDArray[Any]
    scales: NDArray[Any]
    minimum: NDArray[Any] | None = None


def view(buffer: NDArray[np.uint8], dtype: str) -> Block:
    """The block, flat, whose bytes as in a checkpoint are `buffer`, with no copy.

    Raises:
        UnsupportedBlockError: a dtype that is not float32, float16 or bfloat16.
    """
    block_dtype = _OF_CHECKPOINT.get(dtype)
    if block_dtype is None:
        raise UnsupportedBlockError(f"weights of {dtype} cannot be quantized; cast them to float16 first")
    return buffer.view(block_dtype)


def raw(block: Block) -> NDArray[Any]:
    """The block's bits, in the dtype that tells `quantize.kernels` what they are.

    Raises:
        UnsupportedBlockError: another dtype, or the array is not contiguous.
    """
    bits_dtype = _RAW.get(block.dtype)
    if bits_dtype is None:
        raise UnsupportedBlockError(
            f"a block is float32, float16 or uint16 (bfloat16's bits), not {block.dtype}"
        )
    if not block.flags.c_contiguous:
        raise UnsupportedBlockError("a block must be C-contiguous; copy it with numpy.ascontiguousarray")
    return block.view(bits_dtype)


def widen(values: Block) -> Floats:
    """The values of a block as float32, exactly."""
    bits = raw(values)
    floats = np.empty(bits.shape, np.float32)
    conversion.widen(bits.reshape(-1), floats.reshape(-1))
    return floats


def narrow(values: Floats, dtype: np.dtype[Any]) -> Block:
    """Float32 values rounded to a block's dtype, ties to even."""
    rounded = np.empty(values.shape, dtype)
    conversion.narrow(values.reshape(-1), raw(rounded).reshape(-1))
    return rounded


def output(given: NDArray[Any] | None, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """`given`, or a new array where there is none.

    Args:
        given: a buffer, or None.
        shape: that is needed.
        dtype: that is needed.

    Raises:
        UnsupportedBlockError: `given` has another shape or dtype, or is not contiguous.
    """
    if given is None:
        return np.empty(shape, dtype)
    if given.shape != shape or given.dtype != dtype or not given.flags.c_contiguous:
        raise UnsupportedBlockError(
            f"the buffer for the codes is {given.dtype} {given.shape}; contiguous "
            f"{np.dtype(dtype).name} {shape} is needed"
        )
    return given


def chunked(flat: NDArray[Any], group_numel: int, first: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """Cut a flat array where groups of `group_numel` elements begin.

    Args:
        flat: a part of a flattened tensor.
        group_numel: elements per group of the tensor.
        first: where in the tensor the part begins.

    Yields:
        The first group's number, and elements [groups, elements]: the rest of a group that began before the
        part, the whole groups, and the beginning of the last.
    """
    begin = min(-first % group_numel, flat.size)
    end = begin + (flat.size - begin) // group_numel * group_numel
    for low, high in ((0, begin), (begin, end), (end, flat.size)):
        if low < high:
            whole = flat[low:high].reshape(-1, group_numel if (low, high) == (begin, end) else high - low)
            yield (first + low) // group_numel, whole


def largest(bits: NDArray[Any], first_index: int = 0) -> Floats:
    """The largest absolute value of each group of raw bits [groups, group], float32 [groups].

    Raises:
        NonfiniteWeightError: a weight is NaN or infinite; its index is counted from `first_index`.
    """
    tops = np.empty(bits.shape[0], bits.dtype)
    absmax.largest(bits, tops)
    infinity = _INFINITY[bits.dtype]
    if tops.size and int(tops.max()) >= infinity:
        magnitudes = bits.reshape(-1) & bits.dtype.type(np.iinfo(bits.dtype).max >> (bits.dtype.kind == "u"))
        raise NonfiniteWeightError(first_index + int(np.argmax(magnitudes >= infinity)))
    return widen(tops.view(_FLOATS[bits.dtype]))


def observe(block: Block, group_numel: int, tops: Floats, first: int = 0) -> None:
    """Raise `tops`, the largest absolute value so far of each chunk of a tensor, to what a part of it has.

    Args:
        block: part of a flattened tensor.
        group_numel: weights per chunk of the tensor.
        tops: float32 [groups of the tensor], zeros at first.
        first: where in the tensor the part begins.

    Raises:
        NonfiniteWeightError: a weight is NaN or infinite; the index is its place in `block`.
    """
    index = 0
    for group, part in chunked(raw(block).reshape(-1), group_numel, first):
        group_tops = tops[group : group + len(part)]
        np.maximum(group_tops, largest(part, index), out=group_tops)
        index += part.size


def require_multiple(length: int, group: int, what: str) -> None:
    """Check that groups tile a dimension.

    Args:
        length: of the dimension.
        group: elements per group.
        what: the dimension in words, in front of its length.

    Raises:
        GroupSizeError: they do not.
    """
    if group < 1 or length % group:
        works = [g for g in (256, 128, 64, 32, 16) if length % g == 0]
        sizes = f"; {', '.join(map(str, works))} would" if works else ""
        raise GroupSizeError(f"groups of {group} do not divide {what} {length}{sizes}")
