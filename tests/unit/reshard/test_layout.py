"""The layout arithmetic: ranks tile a dimension, boxes tile a tensor, and heads are never cut."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reshard.errors import CannotSplitError
from reshard.layout import (
    Axis,
    Part,
    aligned_strips,
    arrange,
    joined,
    overlap,
    rank_intervals,
    rank_units,
    strips,
    unit_interval,
    volume,
    whole,
)

DEGREES = (1, 2, 3, 4, 5, 6, 8)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Dimensions of one to three parts in blocks, of which one per head or as many on every rank."""
    blocks = draw(st.integers(1, 4))
    parts = tuple(
        Part(
            name=name,
            units=blocks * draw(st.integers(1, 6)),
            width=draw(st.integers(1, 3)),
            sharing=draw(st.sampled_from(("whole", "replicated", "uneven"))),
        )
        for name in draw(st.sampled_from((("query",), ("gate", "up"), ("query", "key", "value"))))
    )
    return Axis(parts=parts, blocks=blocks, scales=draw(st.booleans()))


def indices(intervals: tuple[tuple[int, int], ...]) -> list[int]:
    return [i for begin, end in intervals for i in range(begin, end)]


def owners(axis: Axis) -> list[tuple[str, int]]:
    """For every index of the dimension its part and unit, laid out by brute force."""
    found: list[tuple[str, int]] = []
    for block in range(axis.blocks):
        for part in axis.parts:
            share = part.units // axis.blocks
            for unit in range(block * share, (block + 1) * share):
                found += [(part.name, unit)] * part.width
    return found


@given(axes(), st.sampled_from(DEGREES))
def test_ranks_tile_the_dimension_and_repeat_only_what_is_replicated(axis: Axis, tp_size: int) -> None:
    try:
        ranks = [indices(rank_intervals(axis, tp_size, rank)) for rank in range(tp_size)]
    except CannotSplitError:
        assume(False)
    assert sorted({i for rank in ranks for i in rank}) == list(range(axis.extent))
    held: dict[int, list[int]] = {}
    for rank, mine in enumerate(ranks):
        assert len(set(mine)) == len(mine)
        for i in mine:
            held.setdefault(i, []).append(rank)
    by_name = {part.name: part for part in axis.parts}
    for i, (name, _) in enumerate(owners(axis)):
        part = by_name[name]
        copies = tp_size // part.units if part.sharing == "replicated" and part.units < tp_size else 1
        # Ranks that share a unit are neighbours, so that a KV head stays beside its queries.
        assert held[i] == list(range(held[i][0], held[i][0] + copies))


@given(axes(), st.sampled_from(DEGREES))
def test_a_rank_holds_whole_units_in_the_structure_of_the_whole(axis: Axis, tp_size: int) -> None:
    everything = owners(axis)
    for rank in range(tp_size):
        try:
            mine = [everything[i] for i in indices(rank_intervals(axis, tp_size, rank))]
        except CannotSplitError:
            assume(False)
        blocks = (
            (max(1, axis.blocks // tp_size) if axis.scales else axis.blocks) if tp_size > 1 else axis.blocks
        )
        expected: list[tuple[str, int]] = []
        for block in range(blocks):
            for part in axis.parts:
                begin, end = rank_units(part, tp_size, rank)
                share = (end - begin) // blocks
                for unit in range(begin + block * share, begin + (block + 1) * share):
                    expected += [(part.name, unit)] * part.width
        assert mine == expected


@given(axes())
def test_unit_intervals_are_where_the_units_lie(axis: Axis) -> None:
    everything = owners(axis)
    for part in axis.parts:
        for unit in range(part.units):
            begin, end = unit_interval(axis, part.name, unit)
            assert [i for i, o in enumerate(everything) if o == (part.name, unit)] == list(range(begin, end))
    with pytest.raises(KeyError):
        unit_interval(axis, "nothing", 0)


@given(st.integers(1, 40), st.integers(1, 40))
def test_uneven_parts_are_shared_out_as_numpy_splits_arrays(units: int, tp_size: int) -> None:
    part = Part(name="features", units=units, sharing="uneven")
    if units < tp_size:
        with pytest.raises(CannotSplitError):
            rank_units(part, tp_size, 0)
        return
    expected = np.array_split(np.arange(units), tp_size)
    for rank in range(tp_size):
        assert list(range(*rank_units(part, tp_size, rank))) == expected[rank].tolist()


def test_fewer_kv_heads_than_ranks_are_repeated_for_neighbouring_ranks() -> None:
    part = Part(name="key", units=2, sharing="replicated")
    assert [rank_units(part, 8, rank)[0] for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "part, tp_size, message",
    [
        (
            Part(name="query", units=6),
            4,
            "6 query heads cannot be shared out over tp_size=4; degrees that work: 1, 2, 3, 6",
        ),
        (
            Part(name="key", units=2, sharing="replicated"),
            3,
            "2 key heads cannot be shared out over tp_size=3; degrees that work: 1, 2, and multiples of 2",
        ),
        (
            Part(name="features", units=3, sharing="uneven"),
            4,
            "3 features cannot be shared out over tp_size=4; degrees up to 3 work",
        ),
        (Part(name="features", units=48), 5, "degrees that work: 1, 2, 3, 4, 6, 8, 12, 16, 24, 48"),
        (Part(name="features", units=720), 7, "15, 16, …"),
    ],
)
def test_refusals_say_what_and_which_degrees_work(part: Part, tp_size: int, message: str) -> None:
    with pytest.raises(CannotSplitError) as caught:
        rank_units(part, tp_size, 0)
    assert message in str(caught.value)


def test_units_that_do_not_fill_the_blocks_are_refused() -> None:
    """CodeGen's forward has four blocks at any degree: two heads on a rank cannot fill them."""
    axis = Axis(parts=(Part(name="query", units=8), Part(name="value", units=8)), blocks=4)
    assert len(indices(rank_intervals(axis, 2, 0))) == 8
    with pytest.raises(CannotSplitError, match="2 query heads on a rank do not fill the 4 blocks"):
        rank_intervals(axis, 4, 0)
    with pytest.raises(CannotSplitError, match="3 up on a rank"):
        list(arrange([("gate", (0, 4)), ("up", (0, 3))], 2))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), max_size=8))
def test_joining_changes_no_index_and_leaves_no_neighbours(steps: list[tuple[int, int]]) -> None:
    at, intervals = 0, []
    for gap, length in steps:
        intervals.append((at + gap, at + gap + length))
        at += gap + length
    found = list(joined(intervals))
    assert indices(tuple(found)) == indices(tuple(intervals))
    assert all(a[1] != b[0] for a, b in itertools.pairwise(found))


@st.composite
def boxes(draw: st.DrawFn, dims: int) -> tuple[tuple[int, int], ...]:
    return tuple(
        (begin, begin + draw(st.integers(0, 4))) for begin in draw(st.tuples(*[st.integers(0, 4)] * dims))
    )


@given(st.integers(0, 3).flatmap(lambda dims: st.tuples(boxes(dims), boxes(dims))))
def test_overlap_is_the_common_elements(pair: tuple[tuple[tuple[int, int], ...], ...]) -> None:
    a, b = (set(itertools.product(*(range(*i) for i in box))) for box in pair)
    common = overlap(*pair)
    if common is None:
        assert not a & b
    else:
        assert set(itertools.product(*(range(*i) for i in common))) == a & b
        assert volume(common) == len(a & b)


@given(st.lists(st.integers(0, 5), max_size=4), st.integers(1, 40))
def test_strips_tile_a_tensor_in_order_and_are_contiguous(shape: list[int], longest: int) -> None:
    numbers = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    at = 0
    for box in strips(shape, longest):
        values = numbers[tuple(slice(*interval) for interval in box)].reshape(-1)
        assert values.tolist() == list(range(at, at + volume(box)))
        assert 0 < volume(box) <= longest
        at += volume(box)
    assert at == numbers.size


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(1, 60),
    st.sets(st.integers(0, 14)),
)
def test_aligned_strips_tile_a_tensor_in_order_and_end_at_bounds(
    shape: list[int], longest: int, bounds: set[int]
) -> None:
    numbers = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    per_row = int(np.prod(shape[1:], dtype=int))
    at = 0
    for box in aligned_strips(shape, longest, bounds):
        values = numbers[tuple(slice(*interval) for interval in box)].reshape(-1)
        assert values.tolist() == list(range(at, at + volume(box)))
        assert 0 < volume(box) <= longest
        at += volume(box)
        begin, end = box[0]
        reachable = [b for b in bounds | {shape[0]} if begin < b <= min(begin + longest // per_row, shape[0])]
        assert end == max(reachable) if reachable and begin * per_row == at - volume(box) else True
    assert at == numbers.size


def test_the_box_of_a_scalar_has_one_element() -> None:
    assert whole(()) == ()
    assert volume(()) == 1
    assert list(strips((), 1)) == [()]
