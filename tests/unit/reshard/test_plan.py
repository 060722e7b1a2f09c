"""The plan: every source element read exactly once, every target element written exactly once."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import InconsistentShardsError
from reshard.formats.base import Source, SourceFile
from reshard.layout import Axis, Box, Part, rank_intervals, volume
from reshard.model import Model
from reshard.plan import make_plan, without
from reshard.storage import LocalFolder
from reshard.tensors import Chunk, FileRegion, LogicalTensor, StoredTensor, copy_of, cut, file_regions

_SIZES = {"float16": 2, "float32": 4}


def elements(box: Box) -> set[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for begin, end in box:
        found = [(*index, i) for index in found for i in range(begin, end)]
    return set(found)


@st.composite
def box_pairs(draw: st.DrawFn) -> tuple[Box, Box]:
    dims = draw(st.integers(0, 3))

    def box() -> Box:
        begins = [draw(st.integers(0, 4)) for _ in range(dims)]
        return tuple((b, b + draw(st.integers(1, 4))) for b in begins)

    return box(), box()


@given(box_pairs())
def test_without_tiles_what_is_left(pair: tuple[Box, Box]) -> None:
    box, hole = pair
    left = without(box, hole)
    counted = Counter(index for part in left for index in elements(part))
    assert set(counted) == elements(box) - elements(hole)
    assert set(counted.values()) <= {1}


def place(tensors: list[StoredTensor], name: str, rank: int | None) -> SourceFile:
    """One file, its tensors one behind the other after a header of eight bytes."""
    at, placed = 8, []
    for tensor in tensors:
        placed.append(
            StoredTensor(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                chunks=tensor.chunks,
                transposed=tensor.transposed,
                offset_bytes=at,
            )
        )
        at += tensor.size_bytes
    return SourceFile(name=name, tensors=tuple(placed), rank=rank)


def addresses(region: FileRegion, itemsize: int) -> dict[tuple[int, ...], int]:
    """Logical index → the byte in the file where that element begins."""
    return {
        index: region.offset_bytes
        + itemsize * sum((i - b) * s for i, (b, _), s in zip(index, region.box, region.strides, strict=True))
        for index in elements(region.box)
    }


KV = Axis(parts=(Part(name="key", units=2, width=2, sharing="replicated"),))
FUSED = Axis(
    parts=(
        Part(name="query", units=4, width=2),
        Part(name="key", units=2, width=2, sharing="replicated"),
        Part(name="value", units=2, width=2, sharing="replicated"),
    ),
    blocks=2,
    scales=True,
)
PLAIN = Axis(parts=(Part(name="features", units=16, sharing="uneven"),))
AXES = {"k": KV, "qkv": FUSED, "up": PLAIN}


def ranks(
    tp_size: int, dim: int, tensors: dict[str, LogicalTensor], *, is_transposed: bool
) -> list[SourceFile]:
    files = []
    for rank in range(tp_size):
        held = [cut(n, t, dim, rank_intervals(AXES[n], tp_size, rank)) for n, t in tensors.items()]
        held = [
            StoredTensor(name=t.name, dtype=t.dtype, shape=t.shape, chunks=t.chunks, transposed=is_transposed)
            for t in held
        ]
        files.append(place(held, f"rank-{rank}", rank))
    return files


def source_of(tensors: dict[str, LogicalTensor], files: list[SourceFile], tp_size: int) -> Source:
    return Source(
        format="safetensors",
        folder=LocalFolder(Path("nowhere")),
        model=Model(config={"model_type": "none"}, table=None, geometry=None),
        tensors=tensors,
        files=tuple(files),
        tp_size=tp_size,
    )


@given(
    st.sampled_from((1, 2, 4, 8)),
    st.sampled_from((1, 2, 4, 8)),
    st.sampled_from((0, 1)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(("float16", "float32")),
)
def test_every_element_is_read_once_and_written_once_per_target(
    given_size: int, wanted_size: int, dim: int, from_transposed: bool, to_transposed: bool, target: str
) -> None:
    # Degrees above the query heads are refused by the rules; here KV heads are repeated up to eight times.
    names = ["k", "up"] + (["qkv"] if max(given_size, wanted_size) <= 4 else [])
    tensors = {
        n: LogicalTensor(dtype="float16", shape=(AXES[n].extent, 3) if dim == 0 else (3, AXES[n].extent))
        for n in names
    }
    cast = {n: LogicalTensor(dtype=target, shape=t.shape) for n, t in tensors.items()}
    source = source_of(tensors, ranks(given_size, dim, tensors, is_transposed=from_transposed), given_size)
    targets = ranks(wanted_size, dim, cast, is_transposed=to_transposed)
    plan = make_plan(source, cast, [(f.name, f.rank, f.tensors) for f in targets])
    assert [c.name for c in plan] == names
    read: Counter[tuple[str, int]] = Counter()
    written: Counter[tuple[str, int]] = Counter()
    for copy in plan:
        whole = elements(tuple((0, n) for n in copy.shape))
        counted = Counter(index for region in copy.sources for index in elements(region.box))
        assert set(counted) == whole
        assert set(counted.values()) == {1}
        for region in (*copy.sources, *copy.replicas):
            read.update((region.file, at) for at in addresses(region, 2).values())
        for region in copy.targets:
            written.update((region.file, at) for at in addresses(region, _SIZES[target]).values())
        # What is repeated is compared: each replica lies at another place than what it repeats.
        assert copy.read_bytes == 2 * sum(volume(p.box) for p in (*copy.sources, *copy.replicas))
        assert copy.written_bytes == _SIZES[target] * sum(volume(p.box) for p in copy.targets)
    assert set(read.values()) == {1}
    assert set(written.values()) == {1}
    assert sorted(read) == _every(source.files, 2)
    assert sorted(written) == _every(targets, _SIZES[target])


def _every(files: list[SourceFile] | tuple[SourceFile, ...], itemsize: int) -> list[tuple[str, int]]:
    """Where every element of the files' tensors begins."""
    return sorted(
        (f.name, at)
        for f in files
        for t in f.tensors
        for at in range(t.offset_bytes, t.offset_bytes + t.size_bytes, itemsize)
    )


def test_a_missing_shard_is_missed() -> None:
    tensors = {"up": LogicalTensor(dtype="float16", shape=(16, 3))}
    files = ranks(4, 0, tensors, is_transposed=False)
    with pytest.raises(InconsistentShardsError, match="36 of the 48 elements of up"):
        make_plan(source_of(tensors, files[:3], 4), tensors, [])


def test_replicas_that_overlap_in_part_are_read_and_compared_in_that_part() -> None:
    tensors = {"up": LogicalTensor(dtype="float16", shape=(16,))}
    first = cut("up", tensors["up"], 0, ((0, 10),))
    second = cut("up", tensors["up"], 0, ((6, 16),))
    source = source_of(tensors, [place([first], "a", 0), place([second], "b", 1)], 2)
    (copy,) = make_plan(source, tensors, [])
    assert [(p.file, p.box) for p in copy.sources] == [("a", ((0, 10),)), ("b", ((10, 16),))]
    assert [(p.file, p.box) for p in copy.replicas] == [("b", ((6, 10),))]
    assert copy.replicas[0].offset_bytes == 8


def test_swapped_chunks_lie_where_the_other_family_has_them() -> None:
    """A Conv1D `[in, out]` put into rows of `[out, in]`, and that file transposed again."""
    chunk = Chunk(tensor="w", box=((0, 3), (2, 6)), at=(1, 0), is_swapped=True)
    for transposed, expected in ((False, (1, 3)), (True, (5, 1))):
        stored = StoredTensor(
            name="s", dtype="float16", shape=(5, 3), chunks=(chunk,), transposed=transposed, offset_bytes=100
        )
        ((name, region),) = file_regions(stored, "f", None)
        assert name == "w"
        assert region.strides == expected
        # Element (0, 2) of the logical tensor is element (1, 0) of the stored one.
        assert region.offset_bytes == 100 + 2 * (1 if transposed else 3)


def test_a_scalar_is_one_element() -> None:
    tensors = {"s": LogicalTensor(dtype="float32", shape=())}
    source = source_of(tensors, [place([copy_of("s", tensors["s"])], "a", None)], 1)
    (copy,) = make_plan(source, tensors, [])
    assert [(p.box, p.offset_bytes) for p in copy.sources] == [((), 8)]
