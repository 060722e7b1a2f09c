"""Headers are checked before anybody believes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from reshard.checkpoint import TensorSpec, read_specs
from reshard.dtypes import dtype, from_safetensors
from reshard.errors import DamagedFileError, MissingFileError, UnknownDtypeError

_ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def _raw(folder: Path, header: bytes, data: bytes = b"") -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_a_real_file_is_read(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.int8)}, tmp_path / "model.safetensors")
    specs = read_specs(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    # The library puts the larger alignment first, and the file ends with the data.
    assert specs == {
        "a": TensorSpec(dtype="float32", shape=(2, 3), file="model.safetensors", offset_bytes=size - 28),
        "b": TensorSpec(dtype="int8", shape=(4,), file="model.safetensors", offset_bytes=size - 4),
    }


def test_shards_are_joined_and_what_is_lost_is_named(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float16)}, tmp_path / "1.safetensors")
    save_file({"b": np.zeros(3, np.float16)}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    specs = read_specs(tmp_path)
    assert specs is not None
    assert {name: spec.file for name, spec in specs.items()} == {"a": "1.safetensors", "b": "2.safetensors"}
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "c": "2.safetensors"}}))
    with pytest.raises(DamagedFileError, match="c"):
        read_specs(tmp_path)


def test_no_weights_and_pickled_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no weights"):
        read_specs(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert read_specs(tmp_path) is None


@pytest.mark.parametrize(
    "header, data",
    [
        (b"not json", b""),
        (b"[1]", b""),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"1234"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"1234"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678"),
        (b'{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}', b""),
        (b'{"a":{"dtype":"F32","shape":[1]}}', b"1234"),
        (
            b'{"a":' + _ONE + b',"b":' + _ONE + b"}",
            b"1234",
        ),
        (
            b'{"a":' + _ONE + b',"a":' + _ONE + b"}",
            b"1234",
        ),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"12345678"),
    ],
)
def test_hostile_headers_are_damaged_files(tmp_path: Path, header: bytes, data: bytes) -> None:
    _raw(tmp_path, header, data)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
        read_specs(tmp_path)


@pytest.mark.parametrize("payload", [b"", b"1234", b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}"])
def test_impossible_header_lengths(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(payload)
    with pytest.raises(DamagedFileError):
        read_specs(tmp_path)


def test_dtypes_by_any_of_their_names() -> None:
    assert dtype("torch.float16") == dtype("fp16") == from_safetensors("F16")
    for call, name in ((dtype, "float7"), (from_safetensors, "F7")):
        with pytest.raises(UnknownDtypeError, match=name):
            call(name)
