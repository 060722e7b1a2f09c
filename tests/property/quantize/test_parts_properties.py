"""Parts of a tensor are encoded as the whole is: streaming and cutting for tensor parallelism rest on it."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantize.errors import ScaleOverflowError
from quantize.groups import moq, rows, search, symmetric, zero_inference
from quantize.groups.blocks import Encoded, observe
from quantize.scheme import Moq

from .weights import block_of, dtypes, shapes, tensors

# The first call compiles.
UNHURRIED = settings(deadline=None, max_examples=100)


@UNHURRIED
@given(st.data(), shapes, dtypes, st.integers(1, 20))
def test_moq_in_two_passes_is_moq(
    data: st.DataObject, shape: tuple[int, int], dtype: str, groups: int
) -> None:
    """Row blocks do not end where chunks do."""
    block = block_of(data.draw(tensors(shape, dtype)))
    group_numel = Moq(groups=min(groups, block.size)).group_numel((1, block.size))
    step = data.draw(st.integers(1, shape[0]))
    found = np.zeros(-(-block.size // group_numel), np.float32)
    for begin in range(0, shape[0], step):
        observe(block[begin : begin + step], group_numel, found, begin * shape[1])
    try:
        whole = moq.encode(block, group_numel=group_numel)
    except ScaleOverflowError:
        return
    scales = moq.scale(found)
    assert np.array_equal(scales, whole.scales)
    codes = np.empty(shape, np.int8)
    for begin in range(0, shape[0], step):
        there = slice(begin, begin + step)
        moq.encode_part(
            block[there], scales, group_numel=group_numel, first=begin * shape[1], codes=codes[there]
        )
    assert np.array_equal(codes, whole.codes)


@UNHURRIED
@given(st.data(), dtypes, st.sampled_from([8, 4]), st.sampled_from([0, 1]), st.sampled_from([1, 2, 4]))
def test_quantize_then_cut_is_cut_then_quantize(
    data: st.DataObject, dtype: str, bits: int, dim: int, tp_size: int
) -> None:
    """Groups of 4 in a matrix whose parts hold whole groups."""
    block = block_of(data.draw(tensors((8, 32), dtype)))

    def cut(array: NDArray[Any], rank: int) -> NDArray[Any]:
        size = array.shape[dim] // tp_size
        part = (slice(None),) * dim + (slice(rank * size, (rank + 1) * size),)
        return np.ascontiguousarray(array[part])

    def same(whole: Encoded, part: Encoded, rank: int) -> None:
        assert np.array_equal(cut(whole.codes, rank), part.codes)
        assert np.array_equal(cut(whole.scales, rank), part.scales)

    for encode in (symmetric.encode, search.encode):
        whole = encode(block, group_size=4, bits=bits)
        for rank in range(tp_size):
            same(whole, encode(cut(block, rank), group_size=4, bits=bits), rank)
    try:
        whole = rows.encode(block, group_numel=4, bits=bits)
        spanning = zero_inference.encode(block, group_size=4, bits=bits)
    except ScaleOverflowError:
        return
    whole = Encoded(whole.codes, whole.scales.reshape(8, 8))
    for rank in range(tp_size):
        part = rows.encode(cut(block, rank), group_numel=4, bits=bits)
        same(whole, Encoded(part.codes, part.scales.reshape(cut(whole.scales, rank).shape)), rank)
        same(spanning, zero_inference.encode(cut(block, rank), group_size=4, bits=bits), rank)
