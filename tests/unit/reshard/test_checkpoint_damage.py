"""What a damaged header or index says of itself: each contradiction is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from reshard.checkpoint import read_specs
from reshard.errors import DamagedFileError, MissingFileError


def tensor(begin: int, end: int, *shape: object, dtype: str = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write(file: Path, header: dict[str, Any] | bytes, num_data_bytes: int) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(num_data_bytes))


def index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_empty_tensor_takes_no_bytes(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"none": tensor(0, 0, 0, 3), "a": tensor(0, 2, 1)}, 2)
    specs = read_specs(tmp_path)
    assert specs is not None
    assert specs["none"].shape == (0, 3)


@pytest.mark.parametrize(
    "header, num_data_bytes, words",
    [
        ({"a": tensor(0, 4, 2)}, 3, "truncated or damaged"),
        ({"a": tensor(0, 4, 2)}, 5, "end at byte 4 of 5"),
        ({"a": tensor(0, 4, 3)}, 4, "of 6 bytes"),
        ({"a": tensor(-4, 0, 2)}, 4, "-4 is no size"),
        ({"a": tensor(0, 4, -1, -2)}, 4, "-1 is no size"),
        ({"a": tensor(0, 4, 2), "b": tensor(2, 6, 2)}, 6, "begins at byte 2, not at 4"),
        ({"a": tensor(0, 4, 2), "b": tensor(6, 10, 2)}, 10, "begins at byte 6, not at 4"),
        ({"a": tensor(0, 4, "2")}, 4, "not described properly"),
        ({"a": tensor(0, 4, 2.0)}, 4, "not described properly"),
        ({"a": tensor(0, 4, 2, dtype="F17")}, 4, "F17"),
        ({"a": {"dtype": "F16", "shape": [2]}}, 4, "data_offsets"),
        ({"a": [1, 2]}, 4, "not described properly"),
        (b'{"a": 1, "a": 2}', 4, "'a' twice"),
        (b"[]", 0, "no object"),
        (b"{", 0, "damaged header"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, header: dict[str, Any] | bytes, num_data_bytes: int, words: str
) -> None:
    write(tmp_path / "model.safetensors", header, num_data_bytes)
    with pytest.raises(DamagedFileError, match=words):
        read_specs(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", {"a": tensor(0, 4, 2)}, 4)
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(MissingFileError, match=r"two\.safetensors"):
        read_specs(tmp_path)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors"])
def test_an_index_may_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    index(tmp_path, {"a": name})
    with pytest.raises(DamagedFileError, match="outside its folder"):
        read_specs(tmp_path)


@pytest.mark.parametrize("found", [[], {"a": 1}, None, "text"])
def test_an_index_without_names_and_files(tmp_path: Path, found: object) -> None:
    index(tmp_path, found)
    with pytest.raises(DamagedFileError, match="weight_map"):
        read_specs(tmp_path)
