"""PyTorch's archives, laid out in memory before the data of their tensors are known.

`torch.save` also writes to an object with `write` and `seek`, and seeks over data that it is told to skip.
The folder inside the archive is then called `archive`, where a path would give it the file's name. The files
laid out here are the same, byte for byte, as `torch.save` writes to a path: the records of an archive in
memory are put into a second one whose folder has the file's name, by the same rules.

Source: torch 2.13, `caffe2/serialize/inline_container.cc` (records, alignment), `third_party/miniz` (ZIP64).
"""

import argparse
import struct
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any, Final

import msgspec
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .pickles import ATTRIBUTE
from .tensors import StoredTensor

#: From this value on a field of 32 bits is replaced by one of 64.
_FULL: Final = 0xFFFFFFFF
_FILLER: Final = b"FB"
_EXTRA_64: Final = b"\x01\x00"
_LOCAL: Final = b"PK\x03\x04"
_FOOTER: Final = b"PK\x07\x08"
_CENTRAL: Final = b"PK\x01\x02"
_END_64: Final = b"PK\x06\x06"
_LOCATOR_64: Final = b"PK\x06\x07"
_END: Final = b"PK\x05\x06"
#: Bit of a header's flags.
_HAS_FOOTER: Final = 0x08
_LOCAL_BYTES: Final = 30
_CENTRAL_BYTES: Final = 46
#: torch's archive in memory is called so.
_FOLDER: Final = "archive/"
_ALIGNMENT_BYTES: Final = 64


class Skeleton(msgspec.Struct, frozen=True, kw_only=True):
    """A file without the data of its tensors.

    Attributes:
        parts: (offset in the file, bytes there), ascending; what lies between them is data.
        offsets_bytes: where each tensor's data belong, in the tensors' order.
        size_bytes: of the whole file.
    """

    parts: tuple[tuple[int, bytes], ...]
    offsets_bytes: tuple[int, ...]
    size_bytes: int


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the archive.

    Attributes:
        name: without the archive's folder.
        header: the fixed part of its local header.
        entry: the fixed part of its entry in the central directory.
        data: its bytes; None for those of a tensor.
        size_bytes: how many there are.
    """

    name: str
    header: bytes
    entry: bytes
    data: bytes | None
    size_bytes: int


class _Pieces:
    """What `torch.save` writes, one piece for each call; of what it skips, the number of bytes."""

    def __init__(self) -> None:
        self.written: list[bytes | int] = []

    def write(self, data: Any) -> int:
        self.written.append(bytes(data))
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> None:
        assert whence == 1, "only data are passed over"
        self.written.append(offset)

    def flush(self) -> None:
        pass


class _Parts:
    """A file that is put together from its beginning to its end."""

    def __init__(self) -> None:
        self._found: list[tuple[int, bytearray]] = []
        self.at = 0

    def write(self, data: bytes) -> None:
        if self._found and self._found[-1][0] + len(self._found[-1][1]) == self.at:
            self._found[-1][1].extend(data)
        else:
            self._found.append((self.at, bytearray(data)))
        self.at += len(data)

    def skip(self, size_bytes: int) -> None:
        self.at += size_bytes

    def parts(self) -> tuple[tuple[int, bytes], ...]:
        return tuple((at, bytes(data)) for at, data in self._found)


def lay_out_archive(
    name: str,
    tensors: tuple[StoredTensor, ...],
    manifest: str,
    *,
    root: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
    lists: Collection[str] = (),
) -> Skeleton:
    """An archive with everything but the data of `tensors`.

    Args:
        name: the file's; without its ending it is the name of the archive's folder, as with `torch.save`.
        tensors: what it will hold.
        manifest: goes with the dictionary of tensors, as its attribute `_reshard`.
        root: keys under which that dictionary stands; none: it is the archive's object.
        extra: other entries of the outermost dictionary; `args` becomes a namespace.
        lists: keys whose value is a list, of the tensors `key.0`, `key.1` and so on, in that order.
    """
    value: Any = _held(tensors, lists)
    setattr(value, ATTRIBUTE, manifest)
    for key in reversed(root):
        value = {key: value}
    if root:
        value |= {k: argparse.Namespace(**v) if k == "args" else v for k, v in (extra or {}).items()}
    parts, offsets, size = _laid_out(_records(_saved(value)), PurePath(name).stem)
    # Data lie in the order in which the pickle meets the tensors.
    begins = dict(zip(_met(tensors, lists), offsets, strict=True))
    return Skeleton(parts=parts, offsets_bytes=tuple(begins[t.name] for t in tensors), size_bytes=size)


def _held(tensors: tuple[StoredTensor, ...], lists: Collection[str]) -> OrderedDict[str, Any]:
    """The dictionary of tensors, which have no data."""
    held: OrderedDict[str, Any] = OrderedDict()
    with FakeTensorMode():
        for tensor in tensors:
            empty = torch.empty(tensor.stored_shape, dtype=getattr(torch, tensor.dtype))
            key = tensor.name.rpartition(".")[0]
            if key in lists:
                held.setdefault(key, []).append(empty)
            else:
                held[tensor.name] = empty
    return held


def _met(tensors: tuple[StoredTensor, ...], lists: Collection[str]) -> list[str]:
    """The tensors' names, those of a list where its first one is."""
    names: dict[str, list[str]] = {}
    for tensor in tensors:
        key = tensor.name.rpartition(".")[0]
        names.setdefault(key if key in lists else tensor.name, []).append(tensor.name)
    return [name for several in names.values() for name in several]


def _saved(value: Any) -> list[bytes | int]:
    pieces = _Pieces()
    checksums = torch.serialization.get_crc32_options()
    # The data are not there yet, so checksums of them would be wrong.
    torch.serialization.set_crc32_options(False)
    try:
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(value, pieces)  # type: ignore[arg-type]
    finally:
        torch.serialization.set_crc32_options(checksums)
    return pieces.written


def _records(pieces: list[bytes | int]) -> list[_Record]:
    """The records of an archive in memory: header, name, extra fields, data and footer are a piece each."""
    end = next(i for i, piece in enumerate(pieces) if _is(piece, _CENTRAL))
    directory = pieces[end]
    assert isinstance(directory, bytes)
    begins = [i for i in range(end) if _is(pieces[i], _LOCAL)]
    records = []
    at = 0
    for begin, next_begin in zip(begins, [*begins[1:], end], strict=True):
        header, name, *rest = pieces[begin:next_begin]
        assert isinstance(header, bytes)
        assert isinstance(name, bytes)
        entry = directory[at : at + _CENTRAL_BYTES]
        at += _CENTRAL_BYTES + sum(struct.unpack_from("<3H", entry, 28))
        # A tensor without elements has no data and no footer.
        data = 0 if len(rest) < 3 else rest[-2]
        records.append(
            _Record(
                name=name.decode().removeprefix(_FOLDER),
                header=header,
                entry=entry,
                data=data if isinstance(data, bytes) else None,
                size_bytes=len(data) if isinstance(data, bytes) else data,
            )
        )
    return records


def _is(piece: bytes | int, signature: bytes) -> bool:
    return isinstance(piece, bytes) and piece.startswith(signature)


def _laid_out(records: list[_Record], folder: str) -> tuple[tuple[tuple[int, bytes], ...], list[int], int]:
    """The archive's parts, the offsets of its tensors' data, and its size."""
    file, directory, offsets = _Parts(), bytearray(), list[int]()
    for record in records:
        name = f"{folder}/{record.name}".encode()
        begin = file.at
        is_long = record.size_bytes >= _FULL
        place = (begin,) if begin >= _FULL else ()
        # The writer does not know yet what it will have compressed the data to.
        extra = _extra_64((*((record.size_bytes, 0) if is_long else ()), *place))
        start = begin + _LOCAL_BYTES + len(name) + len(extra) + 4
        padding = -start % _ALIGNMENT_BYTES
        filler = _FILLER + struct.pack("<H", padding) + b"Z" * padding
        lengths = struct.pack("<2H", len(name), len(extra) + len(filler))
        file.write(record.header[:26] + lengths + name + extra + filler)
        if record.data is None:
            offsets.append(file.at)
            file.skip(record.size_bytes)
        else:
            file.write(record.data)
        if record.header[6] & _HAS_FOOTER:
            form = "<2Q" if extra else "<2L"
            footer = struct.pack(form, record.size_bytes, record.size_bytes)
            file.write(_FOOTER + record.entry[16:20] + footer)
        lengths = struct.pack("<2H", len(name), len(extra))
        extra = _extra_64((*((record.size_bytes, record.size_bytes) if is_long else ()), *place))
        at = struct.pack("<L", min(begin, _FULL))
        directory += record.entry[:28] + lengths + record.entry[32:42] + at + name + extra
    begin = file.at
    file.write(bytes(directory) + _end(len(records), len(directory), begin))
    return file.parts(), offsets, file.at


def _extra_64(values: tuple[int, ...]) -> bytes:
    """The extra field of what does not fit 32 bits: sizes, then the place of the local header."""
    return _EXTRA_64 + struct.pack(f"<H{len(values)}Q", 8 * len(values), *values) if values else b""


def _end(count: int, size_bytes: int, begin: int) -> bytes:
    """What follows a central directory of `count` entries that lies at byte `begin`."""
    end = _END + struct.pack("<4H2LH", 0, 0, count, count, size_bytes, min(begin, _FULL), 0)
    end_64 = _END_64 + struct.pack("<Q2H2L4Q", 44, 0x031E, 45, 0, 0, count, count, size_bytes, begin)
    return end_64 + _LOCATOR_64 + struct.pack("<LQL", 0, begin + size_bytes, 1) + end
