"""Damaged and hostile files: one sentence, status 3, and nothing left behind."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures import tiny
from reshard.pickles import read_archive
from reshard.storage import LocalFolder
from tests.integration.reshard.children import contents, made, names, refused, run

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_BIN = "pytorch_model.bin"
_FILE = "reshard.json"
_RANKS = ("model-rank-00-of-02.safetensors", "model-rank-01-of-02.safetensors")
_QUARTER = "model-rank-00-of-04.safetensors"
_SHARD = "model-00002-of-00004.safetensors"

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints that nobody changes: tests damage copies."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.save("llama", folder / "single")
    tiny.save("llama", folder / "sharded", max_shard_size="100KB")
    tiny.save("llama", folder / "other", seed=1)
    made(folder / "single", "--tp", "2", "--output", folder / "tp2")
    made(folder / "single", "--tp", "4", "--output", folder / "tp4")
    made(folder / "other", "--tp", "2", "--output", folder / "other-tp2")
    archive = folder / "archive"
    archive.mkdir()
    torch.save(dict(tiny.build("llama").state_dict()), archive / _BIN)
    shutil.copy(folder / "single" / "config.json", archive)
    return folder


def read_header(file: Path) -> tuple[dict[str, Any], bytes]:
    raw = file.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:end]), raw[end:]


def write_header(file: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def change_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, data = read_header(file)
    change(header)
    write_header(file, header, data)


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def truncate(name: str, keep: float) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / name
        os.truncate(file, int(file.stat().st_size * keep))

    return damage


def flip(name: str, at: int) -> Damage:
    def damage(folder: Path) -> None:
        raw = bytearray((folder / name).read_bytes())
        raw[at] ^= 0x10
        (folder / name).write_bytes(raw)

    return damage


def in_header(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: change_header(folder / name, change)


def in_json(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: change_json(folder / name, change)


def text(name: str, value: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(value)

    return damage


def without(*lost: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in lost:
            (folder / name).unlink()

    return damage


def overlap(header: dict[str, Any]) -> None:
    first, second = sorted(
        (e for n, e in header.items() if n != "__metadata__"), key=lambda e: e["data_offsets"]
    )[:2]
    size = second["data_offsets"][1] - second["data_offsets"][0]
    begin = first["data_offsets"][1] - 4
    second["data_offsets"] = [begin, begin + size]


def empty(name: str, *shape: int) -> Callable[[dict[str, Any]], object]:
    """A tensor that takes no bytes."""
    return lambda h: h.update({name: {"dtype": "F32", "shape": shape or (0,), "data_offsets": (0, 0)}})


def twice(folder: Path) -> None:
    header, data = read_header(folder / _SINGLE)
    name = next(n for n in header if n != "__metadata__")
    entry = json.dumps({name: header[name]})[1:-1]
    write_header(folder / _SINGLE, f"{{{entry},{json.dumps(header)[1:]}".encode(), data)


def header_bytes(count: int) -> Damage:
    def damage(folder: Path) -> None:
        raw = (folder / _SINGLE).read_bytes()
        (folder / _SINGLE).write_bytes(struct.pack("<Q", count) + raw[8:])

    return damage


def rename_shard(to: str) -> Damage:
    def change(index: dict[str, Any]) -> None:
        index["weight_map"] = {n: to if f == _SHARD else f for n, f in index["weight_map"].items()}

    return in_json(_INDEX, change)


#: what is damaged · how · words of the sentence
HUGGING_FACE: list[tuple[str, Damage, tuple[str, ...]]] = [
    ("single", truncate(_SINGLE, 0.0), (_SINGLE, "truncated")),
    ("single", truncate(_SINGLE, 0.00001), (_SINGLE, "truncated")),
    ("single", truncate(_SINGLE, 0.001), (_SINGLE, "truncated")),
    ("single", truncate(_SINGLE, 0.7), (_SINGLE, "truncated or damaged")),
    ("sharded", truncate(_SHARD, 0.99), (_SHARD, "truncated or damaged")),
    ("single", flip(_SINGLE, 8), ("damaged header",)),
    ("single", flip(_SINGLE, 0), (_SINGLE,)),
    ("single", in_header(_SINGLE, overlap), ("begins at byte",)),
    ("single", twice, ("twice",)),
    ("single", header_bytes(1 << 40), ("its header would be 1099511627776 bytes",)),
    ("single", header_bytes((1 << 64) - 1), ("its header would be",)),
    ("single", in_header(_SINGLE, lambda h: h.update(x={"dtype": "F32", "shape": [1]})), ("'x'",)),
    ("single", in_header(_SINGLE, empty("a\nb")), ("no text", "a\\nb")),
    ("single", in_header(_SINGLE, empty("\ud800")), ("no text", "\\ud800")),
    ("single", in_header(_SINGLE, empty("x", 10**30, 0)), ("no size",)),
    ("single", in_header(_SINGLE, empty("x", *[0] * 65)), ("65 dimensions",)),
    ("single", in_header(_SINGLE, lambda h: h.update(__metadata__=[1])), ("metadata",)),
    ("single", lambda f: write_header(f / _SINGLE, b"[" * 100_000, b""), ("damaged header",)),
    ("sharded", rename_shard("../../x"), ("outside its folder", "../../x")),
    ("sharded", rename_shard("/etc/passwd"), ("outside its folder", "/etc/passwd")),
    ("sharded", rename_shard(".."), ("..",)),
    ("sharded", rename_shard(""), (_INDEX,)),
    ("sharded", rename_shard("model-9.safetensors"), ("model-9.safetensors", "missing shard")),
    ("sharded", without(_SHARD), (_SHARD, "missing shard")),
    ("sharded", text(_INDEX, "{"), ("not a checkpoint index",)),
    ("sharded", text(_INDEX, "[" * 100_000), ("not a checkpoint index",)),
    ("sharded", text(_INDEX, "{}"), ("not a checkpoint index", "no weight_map")),
    ("sharded", text(_INDEX, "[]"), ("not a checkpoint index",)),
    ("sharded", text(_INDEX, '{"weight_map": [1]}'), ("weight_map",)),
    ("sharded", text(_INDEX, '{"weight_map": {"a": 1}}'), ("weight_map",)),
]


def ids(cases: list[tuple[str, Damage, tuple[str, ...]]]) -> list[str]:
    return [f"{number}-{kind}-{words[0][:20]}" for number, (kind, _, words) in enumerate(cases)]


def damaged(made_once: Path, tmp_path: Path, kind: str, damage: Damage) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(made_once / kind, folder)
    damage(folder)
    return folder


def refuses(folder: Path, *words: str, arguments: tuple[str, ...] = ("--tp", "2")) -> None:
    """Resharding ends with one sentence; source and neighbours are as they were."""
    before = contents(folder.parent)
    refused(run(folder, *arguments, "--output", folder.parent / "out"), *words)
    assert contents(folder.parent) == before


@pytest.mark.parametrize("kind, damage, words", HUGGING_FACE, ids=ids(HUGGING_FACE))
def test_damaged_checkpoints(
    made_once: Path, tmp_path: Path, kind: str, damage: Damage, words: tuple[str, ...]
) -> None:
    refuses(damaged(made_once, tmp_path, kind, damage), *words)


def payload(folder: Path) -> Path:
    """What a pickle makes when somebody runs it."""
    return folder.parent / "ran"


class _Forged:
    """An array of Python objects whose addresses are the file's to choose."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return np.ndarray, ((1,), np.dtype(object), b"\0" * 8)


def test_arrays_of_numpy_are_not_built(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "forged": _Forged()}, tmp_path / _BIN)
    found = read_archive(LocalFolder(tmp_path), _BIN)
    assert tuple(found["a"].shape) == (1,)
    assert not isinstance(found["forged"], np.ndarray)


def test_an_archive_whose_names_are_no_text(made_once: Path, tmp_path: Path) -> None:
    folder = damaged(made_once, tmp_path, "archive", lambda f: torch.save({"a\n": torch.ones(1)}, f / _BIN))
    refuses(folder, "no text")


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def evil_archive(folder: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": _Payload(payload(folder))}, folder / _BIN)


def evil_pickle(folder: Path) -> None:
    (folder / _BIN).write_bytes(pickle.dumps(_Payload(payload(folder))))


def evil_entry(folder: Path) -> None:
    """An archive of PyTorch whose pickle was replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(folder / _BIN) as given, zipfile.ZipFile(buffer, "w") as made:
        for entry in given.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            raw = pickle.dumps(_Payload(payload(folder))) if is_pickle else given.read(entry)
            made.writestr(entry.filename, raw)
    (folder / _BIN).write_bytes(buffer.getvalue())


def legacy(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / _BIN, _use_new_zipfile_serialization=False)


def itself() -> dict[str, Any]:
    value: dict[str, Any] = {"a": torch.zeros(1)}
    value["again"] = value
    return value


ARCHIVES: list[tuple[str, Damage, tuple[str, ...]]] = [
    ("archive", evil_archive, (_BIN, "refused")),
    ("archive", evil_pickle, (_BIN, "no PyTorch archive")),
    ("archive", evil_entry, (_BIN, "refused")),
    ("archive", legacy, (_BIN, "before 1.6")),
    ("archive", truncate(_BIN, 0.0), (_BIN, "no PyTorch archive")),
    ("archive", truncate(_BIN, 0.5), (_BIN, "damaged or truncated")),
    ("archive", truncate(_BIN, 0.999), (_BIN, "damaged or truncated")),
    ("archive", lambda f: torch.save([1, 2], f / _BIN), (_BIN, "list")),
    ("archive", lambda f: zipfile.ZipFile(f / _BIN, "w").close(), (_BIN,)),
    ("archive", lambda f: torch.save(itself(), f / _BIN), ("holds itself",)),
    ("archive", lambda f: torch.save({"a": torch.eye(3).to_sparse()}, f / _BIN), ("plain elements",)),
    ("archive", lambda f: torch.save({"a": torch.eye(3, device="meta")}, f / _BIN), ("not in the archive",)),
    ("archive", lambda f: torch.save({"a": torch.ones(2).to(torch.cfloat).conj()}, f / _BIN), ("plain",)),
    ("archive", lambda f: torch.save({"step": 3}, f / _BIN), (_BIN, "no tensors")),
]


@pytest.mark.parametrize("kind, damage, words", ARCHIVES, ids=ids(ARCHIVES))
def test_damaged_archives(
    made_once: Path, tmp_path: Path, kind: str, damage: Damage, words: tuple[str, ...]
) -> None:
    folder = damaged(made_once, tmp_path, kind, damage)
    refuses(folder, *words)
    assert not payload(folder).exists()


def test_the_payload_would_run(tmp_path: Path) -> None:
    """Whoever trusts these pickles runs them: the tests above refuse something real."""
    pickle.loads(pickle.dumps(_Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def in_account(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the manifest inside a shard."""

    def edit(header: dict[str, Any]) -> None:
        account = json.loads(header["__metadata__"]["reshard"])
        change(account)
        header["__metadata__"]["reshard"] = json.dumps(account)

    return in_header(name, edit)


def first_slice(change: Callable[[list[Any]], object]) -> Damage:
    return in_account(_RANKS[0], lambda account: change(next(iter(account["slices"].values()))["chunks"][0]))


def put(kind: str, given: str, name: str) -> Damage:
    """Another set's file in place of one of this set."""
    return lambda folder: shutil.copy(folder.parent / "all" / kind / given, folder / name) and None


OWN: list[tuple[str, Damage, tuple[str, ...]]] = [
    ("tp2", truncate(_RANKS[0], 0.001), (_RANKS[0], "truncated")),
    ("tp2", truncate(_RANKS[1], 0.9), (_RANKS[1], "truncated or damaged")),
    ("tp2", flip(_RANKS[0], -1), ("model.norm.weight",)),
    ("tp2", flip(_RANKS[1], -100_000), ("its bytes were changed",)),
    ("tp2", flip(_RANKS[0], 8), ("damaged header",)),
    ("tp2", flip(_RANKS[0], 200), (_RANKS[0],)),
    ("tp2", put("other-tp2", _RANKS[1], _RANKS[1]), ("another checkpoint", "origin")),
    ("tp2", put("tp4", _QUARTER, _RANKS[0]), ("another checkpoint", "tp_size")),
    (
        "tp2",
        put("tp4", _QUARTER, _QUARTER),
        ("no part of it",),
    ),
    ("tp2", put("tp2", _RANKS[0], _RANKS[1]), ("rank",)),
    ("tp2", put("single", _SINGLE, _RANKS[0]), ("no manifest",)),
    ("tp2", put("single", _SINGLE, _SINGLE), ("no part of it", _SINGLE)),
    ("tp2", without(_RANKS[1]), ("lacks", _RANKS[1])),
    ("tp2", without(_FILE), (_FILE,)),
    ("tp2", text(_FILE, "{"), ("damaged manifest",)),
    ("tp2", text(_FILE, "[]"), ("damaged manifest",)),
    ("tp2", lambda f: (f / _FILE).write_bytes(b'{"\xff"}') and None, ("damaged manifest",)),
    ("tp2", in_account(_RANKS[0], lambda m: m.update(format="\ud800")), ("damaged manifest",)),
    ("tp2", in_header(_RANKS[0], lambda h: h.update(__metadata__={"a": "\ud800"})), ("no text",)),
    ("tp2", text(_FILE, "[" * 100_000), ("damaged manifest",)),
    ("tp2", in_json(_FILE, lambda m: m.update(format_version=2)), ("format 2", "update")),
    ("tp2", in_json(_FILE, lambda m: m.pop("tensors")), ("damaged manifest",)),
    ("tp2", in_json(_FILE, lambda m: m.update(files=["../../x"])), ("../../x",)),
    ("tp2", in_json(_FILE, lambda m: m.update(files=[_RANKS[0]])), ("files",)),
    ("tp2", in_json(_FILE, lambda m: m.update(files=[])), ()),
    ("tp2", in_json(_FILE, lambda m: m.update(tp_size=4)), ("tp_size",)),
    ("tp2", in_json(_FILE, lambda m: m.update(tp_size=-1)), ("tp_size",)),
    ("tp2", in_json(_FILE, lambda m: m.update(format="nonsense")), ("format",)),
    ("tp2", in_account(_RANKS[0], lambda m: m.update(tp_rank=1)), ("rank",)),
    ("tp2", in_account(_RANKS[0], lambda m: m.update(tp_rank=7)), ("rank",)),
    ("tp2", first_slice(lambda c: c.__setitem__(1, [[0, 10**12]] * 2)), ("does not fit",)),
    ("tp2", first_slice(lambda c: c.__setitem__(1, [[-8, 0], [-8, 0]])), ("does not fit",)),
    ("tp2", first_slice(lambda c: c.__setitem__(1, [[0, 1]] * 5)), ("does not fit",)),
    ("tp2", first_slice(lambda c: c.__setitem__(1, [])), ("does not fit",)),
    ("tp2", first_slice(lambda c: c.__setitem__(2, [])), ("does not fit",)),
    ("tp2", first_slice(lambda c: c.__setitem__(2, [-1, 0])), ("does not fit",)),
    ("tp2", first_slice(lambda c: c.__setitem__(0, "nothing")), ("does not fit",)),
]


@pytest.mark.parametrize("kind, damage, words", OWN, ids=[f"{n}-{c[2][:1]}" for n, c in enumerate(OWN)])
def test_damaged_sets(
    made_once: Path, tmp_path: Path, kind: str, damage: Damage, words: tuple[str, ...]
) -> None:
    (tmp_path / "all").symlink_to(made_once)
    folder = damaged(made_once, tmp_path, kind, damage)
    (tmp_path / "all").unlink()
    refuses(folder, *words, arguments=("--tp", "1", "--format", "huggingface"))
    refused(run(folder, "--verify"), *words)
    assert names(tmp_path) == {"model"}
