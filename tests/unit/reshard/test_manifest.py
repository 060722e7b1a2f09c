"""What a shard says of itself survives its encoding, and nothing else is believed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import DamagedFileError
from reshard.manifest import Entry, Manifest, Origin, chunks, decode, encode, slices
from reshard.tensors import Chunk, LogicalTensor, StoredTensor, along

WHOLE = Manifest(
    origin=Origin(name="opt-125m", format="huggingface", sha256="0" * 64),
    format="safetensors",
    model_type="opt",
    tp_size=2,
    tp_rank=1,
    files=("a.safetensors", "b.safetensors"),
    tensors={"w": Entry(dtype="float16", shape=(4, 6), sha256="1" * 64)},
    ties={"lm_head.weight": "w"},
    recipe={"quant_method": "bitsandbytes"},
)


@st.composite
def stored(draw: st.DrawFn) -> StoredTensor:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    tensor = LogicalTensor(dtype="float16", shape=(rows, columns))
    dim = draw(st.sampled_from((0, 1)))
    middle = draw(st.integers(1, tensor.shape[dim]))
    parts = along("w", tensor, dim, [(0, middle)])
    extra = draw(st.integers(0, 3))
    shape = tuple(middle + extra if i == dim else n for i, n in enumerate(tensor.shape))
    swapped = Chunk(tensor="v", box=((0, columns), (0, rows)), at=(0, 0), is_swapped=True)
    return StoredTensor(
        name="s",
        dtype="float16",
        shape=shape,
        chunks=(*parts, swapped) if draw(st.booleans()) else parts,
        transposed=draw(st.booleans()),
    )


@given(st.lists(stored(), max_size=3))
def test_slices_say_where_every_box_lies_and_how_much_is_padding(tensors: list[StoredTensor]) -> None:
    named = [
        StoredTensor(**{f: getattr(t, f) for f in t.__struct_fields__} | {"name": str(i)})
        for i, t in enumerate(tensors)
    ]
    account = decode(encode(Manifest(**_fields() | {"slices": slices(named)})), "shard")
    assert list(account.slices) == [t.name for t in named]
    for tensor in named:
        entry = account.slices[tensor.name]
        assert chunks(entry) == tensor.chunks
        assert entry.transposed == tensor.transposed
        covered = sum((c.box[0][1] - c.box[0][0]) * (c.box[1][1] - c.box[1][0]) for c in tensor.chunks)
        assert entry.padding == tensor.shape[0] * tensor.shape[1] - covered


def _fields() -> dict[str, object]:
    return {field: getattr(WHOLE, field) for field in WHOLE.__struct_fields__}


def test_everything_survives() -> None:
    assert decode(encode(WHOLE), "shard") == WHOLE
    assert decode(encode(WHOLE).encode(), "shard") == WHOLE


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format_version": 2}, "has a manifest of format 2; this release reads 1"),
        ({"tp_size": "two"}, "has a damaged manifest"),
        ({"tensors": {"w": {"dtype": "float16"}}}, "has a damaged manifest"),
        ({"origin": None}, "has a damaged manifest"),
        ({"slices": {"s": {"chunks": [["w", [[0, 1]]]]}}}, "has a damaged manifest"),
    ],
)
def test_what_is_no_manifest_is_damage(change: dict[str, object], message: str) -> None:
    raw = json.dumps(json.loads(encode(WHOLE)) | change)
    with pytest.raises(DamagedFileError, match=f"^shard {message}"):
        decode(raw, "shard")


@pytest.mark.parametrize("raw", ["", "{", "[]", "null", '"reshard"', "{}", b"\xff\xfe"])
def test_no_json_is_damage(raw: str | bytes) -> None:
    with pytest.raises(DamagedFileError, match=r"^shard has a damaged manifest"):
        decode(raw, "shard")
