"""Regions of files: gathered and scattered, they are what numpy's indexing says, whatever the strides."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from reshard.regions import gather, is_scattered, scatter, within
from reshard.tensors import FileRegion

#: In front of the tensor, as a file's header is.
_HEAD_BYTES = 24


class File:
    """A file in memory that counts what is asked of it."""

    def __init__(self, raw: bytearray) -> None:
        self.raw = raw
        self.calls: list[tuple[int, int]] = []

    def read(self, _name: str, offset: int, data: memoryview) -> None:
        self.calls.append((offset, len(data)))
        data[:] = self.raw[offset : offset + len(data)]

    def write(self, _name: str, offset: int, data: memoryview) -> None:
        self.calls.append((offset, len(data)))
        self.raw[offset : offset + len(data)] = data


class Case:
    """A tensor in a file, its dimensions permuted, and a box of it."""

    def __init__(self, shape: list[int], order: list[int], box: list[tuple[int, int]], itemsize: int) -> None:
        self.kind = np.dtype(f"u{itemsize}")
        stored = [shape[i] for i in order]
        count = int(np.prod(stored, dtype=int))
        self.raw = bytearray(_HEAD_BYTES) + bytearray(np.arange(1, count + 1).astype(self.kind).tobytes())
        back = [order.index(i) for i in range(len(order))]
        self.tensor: NDArray[Any] = (
            np.frombuffer(self.raw, self.kind, offset=_HEAD_BYTES).reshape(stored).transpose(back)
        )
        self.box = tuple(box)
        strides = tuple(s // itemsize for s in self.tensor.strides)
        at = sum(b * s for (b, _), s in zip(box, strides, strict=True))
        self.region = FileRegion(
            file="f", box=self.box, offset_bytes=_HEAD_BYTES + at * itemsize, strides=strides
        )
        self.wanted = self.tensor[(..., *(slice(*i) for i in box))]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    box = []
    for extent in shape:
        begin = draw(st.integers(0, extent))
        box.append((begin, draw(st.integers(begin, extent))))
    order = draw(st.permutations(range(len(shape))))
    return Case(shape, list(order), box, draw(st.sampled_from((1, 2, 4, 8))))


def in_any_order(case: Case, flip: bool) -> NDArray[Any]:
    """An empty array of the region's shape, row-major or the other way round."""
    return np.zeros(case.wanted.shape, case.kind, order="F" if flip else "C")


@given(cases(), st.booleans())
def test_gather_equals_indexing(case: Case, flip: bool) -> None:
    file, view = File(case.raw), in_any_order(case, flip)
    gather(case.region, view, np.empty(view.nbytes, np.uint8), file.read)
    assert np.array_equal(view, case.wanted)
    assert sum(size for _, size in file.calls) == view.nbytes
    assert len({offset for offset, _ in file.calls}) == len(file.calls)


@given(cases(), st.booleans())
def test_scatter_writes_the_region_and_nothing_else(case: Case, flip: bool) -> None:
    view = in_any_order(case, flip)
    view[...] = case.wanted
    expected = case.tensor.copy()
    blank = case.tensor.copy()
    slices = tuple(slice(*i) for i in case.box)
    blank[slices] = 0
    case.tensor[...] = blank
    file = File(case.raw)
    scatter(case.region, view, np.empty(view.nbytes, np.uint8), file.write)
    assert np.array_equal(case.tensor, expected)
    assert sum(size for _, size in file.calls) == view.nbytes
    assert case.raw[:_HEAD_BYTES] == bytearray(_HEAD_BYTES)


@given(cases(), st.data())
def test_a_part_of_a_piece_is_where_its_box_lies(case: Case, data: st.DataObject) -> None:
    box = []
    for begin, end in case.box:
        low = data.draw(st.integers(begin, end))
        box.append((low, data.draw(st.integers(low, end))))
    part = case.region.part(tuple(box), case.kind.itemsize)
    view = np.zeros([e - b for b, e in box], case.kind)
    gather(part, view, np.empty(view.nbytes, np.uint8), File(case.raw).read)
    assert np.array_equal(view, case.tensor[tuple(slice(*i) for i in box)])
    inside = case.wanted[within(tuple(box), case.box)]
    assert np.array_equal(view, inside)
    # What is read into it must reach the array, the one element of a scalar too.
    assert not inside.size or np.shares_memory(inside, case.tensor)


def test_whole_rows_are_read_at_once_and_columns_row_by_row() -> None:
    rows = Case([8, 6], [0, 1], [(2, 5), (0, 6)], 4)
    file = File(rows.raw)
    view = in_any_order(rows, False)
    gather(rows.region, view, np.empty(view.nbytes, np.uint8), file.read)
    assert file.calls == [(_HEAD_BYTES + 2 * 6 * 4, 3 * 6 * 4)]
    columns = Case([8, 6], [0, 1], [(0, 8), (2, 4)], 4)
    file = File(columns.raw)
    view = in_any_order(columns, False)
    gather(columns.region, view, np.empty(view.nbytes, np.uint8), file.read)
    assert file.calls == [(_HEAD_BYTES + (row * 6 + 2) * 4, 8) for row in range(8)]


def test_only_a_transposed_region_is_scattered() -> None:
    assert is_scattered(Case([4, 4], [1, 0], [(0, 4), (0, 4)], 2).region)
    assert not is_scattered(Case([4, 4], [0, 1], [(0, 4), (0, 4)], 2).region)
    assert not is_scattered(Case([4, 4], [1, 0], [(0, 4), (1, 2)], 2).region)
    assert not is_scattered(Case([4], [0], [(0, 4)], 2).region)


def test_transposes_of_many_tiles_with_ragged_edges() -> None:
    case = Case([3, 300, 257], [0, 2, 1], [(1, 3), (5, 300), (0, 256)], itemsize=2)
    scratch = np.empty(case.wanted.nbytes, np.uint8)
    view = np.zeros(case.wanted.shape, case.kind)
    gather(case.region, view, scratch, File(case.raw).read)
    assert np.array_equal(view, case.wanted)
    written = bytearray(len(case.raw))
    scatter(case.region, view, scratch, File(written).write)
    again = np.zeros(case.wanted.shape, case.kind)
    gather(case.region, again, scratch, File(written).read)
    assert np.array_equal(again, case.wanted)
