"""Target files before their data: headers written, space reserved, digests still to be filled in."""

import json
import os
import re
from pathlib import Path
from typing import Final

import msgspec

from .checkpoint import METADATA
from .dtypes import dtype
from .formats.base import TargetFile
from .manifest import KEY
from .tensors import StoredTensor

#: Stands for a digest until it is known; as long as one, so that nothing moves when it is replaced.
_PENDING: Final = "pending-{:056d}"
_FIND_PENDING: Final = re.compile(rb"pending-(\d{56})")


def pending(number: int) -> str:
    """What stands in manifests in the place of digest `number`."""
    return _PENDING.format(number)


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A target file with its tensors' places.

    Attributes:
        file: the target.
        tensors: with offsets.
        size_bytes: of the whole file.
    """

    file: TargetFile
    tensors: tuple[StoredTensor, ...]
    size_bytes: int


def prepare(file: TargetFile, folder: Path, manifest: str) -> Prepared:
    """Write `file` into `folder` with everything but its tensors' data; those regions are holes."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.container == "safetensors":
        offsets = _safetensors(file, path, manifest)
    else:
        from .pickles import write_skeleton

        offsets = write_skeleton(path, file.tensors, manifest, file.root, file.extra, file.lists)
    placed = tuple(
        msgspec.structs.replace(t, offset_bytes=at) for t, at in zip(file.tensors, offsets, strict=True)
    )
    return Prepared(file=file, tensors=placed, size_bytes=path.stat().st_size)


def _safetensors(file: TargetFile, path: Path, manifest: str) -> tuple[int, ...]:
    """Larger elements first, so that every tensor is aligned to its own; the order that the library uses."""
    order = sorted(range(len(file.tensors)), key=lambda i: -dtype(file.tensors[i].dtype).itemsize_bytes)
    header: dict[str, object] = {METADATA: {**file.metadata, KEY: manifest}}
    begins = [0] * len(file.tensors)
    at = 0
    for i in order:
        tensor = file.tensors[i]
        end = at + tensor.size_bytes
        header[tensor.name] = {
            "dtype": dtype(tensor.dtype).safetensors,
            "shape": list(tensor.stored_shape),
            "data_offsets": [at, end],
        }
        begins[i], at = at, end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + at)
    return tuple(8 + len(raw) + begin for begin in begins)


def reserve(path: Path, size_bytes: int) -> None:
    """Take the space on the disk, where the filesystem can, and see to it that the head is there.

    Raises:
        OSError: ENOSPC.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def head(prepared: Prepared, path: Path) -> bytes:
    """What the file at `path` has before its tensors' data: all that `pending` can have marked."""
    with path.open("rb") as stream:
        return stream.read(min((t.offset_bytes for t in prepared.tensors), default=prepared.size_bytes))


def renew_head(prepared: Prepared, fresh: Path, path: Path) -> None:
    """Give the file at `path` the head of `fresh`: a run may have been killed while it filled digests in."""
    with path.open("r+b") as stream:
        stream.write(head(prepared, fresh))


def fill_in(prepared: Prepared, folder: Path, digests: list[str]) -> None:
    """Put digests in the places that `pending` marked, and see to it that they are on the disk."""
    path = folder / prepared.file.name
    raw = filled_in(head(prepared, path), digests)
    with path.open("r+b") as stream:
        stream.write(raw)
        stream.flush()
        os.fsync(stream.fileno())


def filled_in(raw: bytes, digests: list[str]) -> bytes:
    """`raw` with digests in the places that `pending` marked; what only looks like one stays."""

    def digest(found: re.Match[bytes]) -> bytes:
        number = int(found[1])
        return digests[number].encode() if number < len(digests) else found[0]

    return _FIND_PENDING.sub(digest, raw)
