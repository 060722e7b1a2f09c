"""The headers of safetensors checkpoints, validated before anything uses them. No torch.

Format: https://github.com/huggingface/safetensors (8 bytes header length, JSON header, data).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from .dtypes import from_safetensors
from .errors import CheckpointError, DamagedFileError, MissingFileError
from .storage import Folder, LocalFolder, read

#: The format's own limit on a header.
_LONGEST_HEADER: Final = 100_000_000
#: numpy's limit.
_MOST_DIMENSIONS: Final = 64
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
METADATA: Final = "__metadata__"


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a checkpoint.

    Attributes:
        dtype: torch's name.
        shape: its dimensions.
        file: the file that holds it, relative to the folder.
        offset_bytes: of its first byte, from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str
    offset_bytes: int = 0


def read_specs(folder: Path) -> dict[str, TensorSpec] | None:
    """Every tensor of the checkpoint in `folder`; None when its weights are not safetensors.

    Raises:
        MissingFileError: no weights at all, or a shard that the index names is not there.
        DamagedFileError: an index or header that contradicts itself or its file.
    """
    opened = LocalFolder(folder)
    try:
        if (folder / INDEX).is_file():
            return read_indexed(opened, INDEX)
        if (folder / SINGLE).is_file():
            return read_file(opened, SINGLE)[0]
    finally:
        opened.close()
    if any(folder.glob("pytorch_model*.bin")):
        return None
    raise MissingFileError(f"{folder} has no weights: neither {SINGLE}, {INDEX} nor pytorch_model.bin")


def read_indexed(folder: Folder, index: str) -> dict[str, TensorSpec]:
    """Every tensor of the files that `index` names.

    Raises:
        MissingFileError: a file that it names is not there.
        DamagedFileError: an index or header that contradicts itself or its file.
    """
    weight_map = read_weight_map(folder, index)
    specs: dict[str, TensorSpec] = {}
    for name in sorted(set(weight_map.values())):
        specs |= read_file(folder, name)[0]
    missing = sorted(set(weight_map) - set(specs))
    if missing:
        raise DamagedFileError(
            f"{folder.path(index)} promises tensors that no shard holds: {', '.join(missing[:5])}"
        )
    return specs


def read_weight_map(folder: Folder, index: str) -> dict[str, str]:
    """Tensor → file, as an index has it; every file is in the folder.

    Raises:
        MissingFileError: a file that it names is not there.
        DamagedFileError: no index, or one that names a file elsewhere.
    """
    label = folder.path(index)
    try:
        files_by_tensor = json.loads(read(folder, index), object_pairs_hook=_unique(label))["weight_map"]
    except (KeyError, TypeError):
        raise DamagedFileError(f"{label} is not a checkpoint index: it has no weight_map") from None
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{label} is not a checkpoint index: {error}") from error
    if not isinstance(files_by_tensor, dict) or not all(isinstance(v, str) for v in files_by_tensor.values()):
        raise DamagedFileError(f"{label} has no weight_map of names to files")
    there = set(folder.files())
    for name in sorted(set(files_by_tensor.values())):
        if Path(name).name != name:
            raise DamagedFileError(f"{label} names a file outside its folder: {name!r}")
        if name not in there:
            raise MissingFileError(f"{label} names {name}, which is not there; fetch the missing shard")
    return files_by_tensor


def read_file(folder: Folder, file: str) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """The tensors of one safetensors file, and its `__metadata__`.

    Raises:
        MissingFileError: it is not there.
        DamagedFileError: its header contradicts itself or the file's size.
    """
    label = folder.path(file)
    header, start, size = _header(folder, file)
    specs: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == METADATA:
            continue
        check_name(name, label)
        try:
            kind = from_safetensors(entry["dtype"])
            shape = _shape(entry["shape"])
            begin, end = (_count(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError, CheckpointError) as error:
            raise DamagedFileError(
                f"{label}: tensor {name!r} is not described properly: {error!r}"
            ) from error
        needed = kind.itemsize_bytes
        for extent in shape:
            needed *= extent
        if not begin <= end <= size or end - begin != needed:
            raise DamagedFileError(
                f"{label}: tensor {name!r} of {needed} bytes is said to be at {begin} to {end}, but the file "
                f"holds {size} bytes of data; it is truncated or damaged"
            )
        spans.append((begin, end, name))
        specs[name] = TensorSpec(dtype=kind.name, shape=shape, file=file, offset_bytes=start + begin)
    _check_tiling(label, spans, size)
    return specs, _metadata(label, header)


def check_name(name: str, label: str) -> None:
    """Check that a tensor's name can be written, and shown on one line.

    Raises:
        DamagedFileError: it has control characters, or is no Unicode.
    """
    if not name.isprintable():
        raise DamagedFileError(f"{label} has a tensor whose name is no text: {name[:80]!a}")


def _metadata(label: str, header: dict[str, Any]) -> dict[str, str]:
    entries = header.get(METADATA, {})
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise DamagedFileError(f"{label} has metadata that is no map of text to text")
    try:
        "".join((*entries, *entries.values())).encode()
    except UnicodeEncodeError as error:
        raise DamagedFileError(f"{label} has metadata that is no text: {error}") from error
    return entries


def _shape(extents: Iterable[object]) -> tuple[int, ...]:
    shape = tuple(_count(extent) for extent in extents)
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions")
    return shape


def _count(value: object) -> int:
    """A whole number that is not negative: two negative extents would multiply to a plausible size."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no size")
    return value


def _check_tiling(label: str, spans: Iterable[tuple[int, int, str]], size: int) -> None:
    """The format allows neither holes nor overlaps."""
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise DamagedFileError(f"{label}: tensor {name!r} begins at byte {begin}, not at {at}")
        at = end
    if at != size:
        raise DamagedFileError(f"{label}: its tensors end at byte {at} of {size}; it is truncated or damaged")


def _header(folder: Folder, file: str) -> tuple[dict[str, Any], int, int]:
    """The header, the byte where the data begin, and how many there are."""
    label, size = folder.path(file), folder.size(file)
    length = int.from_bytes(read(folder, file, 0, min(size, 8)), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise DamagedFileError(
            f"{label} is no safetensors file, or truncated: its header would be {length} bytes"
        )
    try:
        header = json.loads(read(folder, file, 8, length), object_pairs_hook=_unique(label))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{label} has a damaged header: {error}") from error
    if not isinstance(header, dict):
        raise DamagedFileError(f"{label} has a header that is no object")
    return header, 8 + length, size - 8 - length


def _unique(label: str) -> Any:
    """A JSON hook that refuses a key given twice."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DamagedFileError(f"{label} describes {twice!r} twice")
        return result

    return build
