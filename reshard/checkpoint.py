"""What a safetensors checkpoint says it holds, checked before anybody believes it. No torch.

Format: https://github.com/huggingface/safetensors (8 bytes header length, JSON header, data).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from .dtypes import from_safetensors
from .errors import CheckpointError, DamagedFileError, MissingFileError

#: The format's own limit on a header.
_LONGEST_HEADER: Final = 100_000_000
_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a checkpoint.

    Attributes:
        dtype: torch's name.
        shape: its dimensions.
        file: the file that holds it, relative to the folder.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str


def read_specs(folder: Path) -> dict[str, TensorSpec] | None:
    """Every tensor of the checkpoint in `folder`; None when its weights are not safetensors.

    Raises:
        MissingFileError: no weights at all, or a shard that the index names is not there.
        DamagedFileError: an index or header that contradicts itself or its file.
    """
    index, single = folder / _INDEX, folder / _SINGLE
    if index.is_file():
        return _read_sharded(folder, index)
    if single.is_file():
        return _read_file(single)
    if any(folder.glob("pytorch_model*.bin")):
        return None
    raise MissingFileError(f"{folder} has no weights: neither {_SINGLE}, {_INDEX} nor pytorch_model.bin")


def _read_sharded(folder: Path, index: Path) -> dict[str, TensorSpec]:
    weight_map = _weight_map(index)
    specs: dict[str, TensorSpec] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise DamagedFileError(f"{index} names a file outside its folder: {name!r}")
        file = folder / name
        if not file.is_file():
            raise MissingFileError(f"{index} names {name}, which is not there; fetch the missing shard")
        specs |= _read_file(file)
    lost = sorted(set(weight_map) - set(specs))
    if lost:
        raise DamagedFileError(f"{index} promises tensors that no shard holds: {', '.join(lost[:5])}")
    return specs


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_bytes(), object_pairs_hook=_unique(index))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{index} is not a checkpoint index: {error!r}") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise DamagedFileError(f"{index} has no weight_map of names to files")
    return found


def _read_file(file: Path) -> dict[str, TensorSpec]:
    header, size = _header(file)
    specs: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            kind = from_safetensors(entry["dtype"])
            shape = tuple(_count(extent) for extent in entry["shape"])
            begin, end = (_count(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError, CheckpointError) as error:
            raise DamagedFileError(f"{file}: tensor {name!r} is not described properly: {error!r}") from error
        needed = kind.itemsize_bytes
        for extent in shape:
            needed *= extent
        if not begin <= end <= size or end - begin != needed:
            raise DamagedFileError(
                f"{file}: tensor {name!r} of {needed} bytes is said to be at {begin} to {end}, but the file "
                f"holds {size} bytes of data; it is truncated or damaged"
            )
        spans.append((begin, end, name))
        specs[name] = TensorSpec(dtype=kind.name, shape=shape, file=file.name)
    _check_tiling(file, spans, size)
    return specs


def _count(found: object) -> int:
    """A whole number that is not negative: two negative extents would multiply to a plausible size."""
    if type(found) is not int or found < 0:
        raise ValueError(f"{found!r} is no size")
    return found


def _check_tiling(file: Path, spans: Iterable[tuple[int, int, str]], size: int) -> None:
    """The format allows neither holes nor overlaps."""
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise DamagedFileError(f"{file}: tensor {name!r} begins at byte {begin}, not at {at}")
        at = end
    if at != size:
        raise DamagedFileError(f"{file}: its tensors end at byte {at} of {size}; it is truncated or damaged")


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes of data follow it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise DamagedFileError(
                f"{file} is no safetensors file, or truncated: its header would be {length} bytes"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique(file))
    except ValueError as error:
        raise DamagedFileError(f"{file} has a damaged header: {error}") from error
    if not isinstance(header, dict):
        raise DamagedFileError(f"{file} has a header that is no object")
    return header, size - 8 - length


def _unique(file: Path) -> Any:
    """A JSON hook that refuses a key given twice."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DamagedFileError(f"{file} describes {twice!r} twice")
        return result

    return build
