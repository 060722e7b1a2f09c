"""PyTorch's archives: where their tensors lie.

Only `torch.load(weights_only=True)` reads them; what is not data of tensors is refused. Tensors come as fake
ones, so that nothing is read but the pickle, however large the file.

Source: torch/serialization.py of torch 2.13, which sets `untyped_storage()._checkpoint_offset` under
FakeTensorMode.
"""

import argparse
import errno
import io
import logging
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .errors import CheckpointError, DamagedFileError
from .storage import Folder

#: Attribute of the dictionary of tensors that holds our manifest.
ATTRIBUTE: Final = "_reshard"
#: Megatron keeps its command line, and its Linears' scratch, in the checkpoint.
_HARMLESS: Final = (argparse.Namespace, io.BytesIO)
#: Megatron's checkpoints hold objects of these that are not needed here: settings, random states. They
#: are not built: numpy's constructors would use any bytes as pointers.
_UNNEEDED: Final = ("megatron.", "numpy.")


class _Unneeded:
    """Stands for an object that is not built."""

    def __init__(self, *_: object) -> None:
        """Take the arguments of any class."""

    def __setstate__(self, _: object) -> None:
        """Forget it."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tensor's data are in its archive.

    Attributes:
        dtype: torch's name.
        shape: its dimensions.
        strides: in elements.
        offset_bytes: of its first element, from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset_bytes: int


def read_archive(folder: Folder, file: str) -> Any:
    """The object in a PyTorch archive, its tensors without data.

    Raises:
        DamagedFileError: no archive, a truncated one, one of PyTorch before 1.6, or one that holds objects
            other than tensors and plain values. Those could run code and are not looked at.
    """
    label = folder.path(file)
    with folder.open(file) as stream:
        if stream.read(2) != b"PK":
            raise DamagedFileError(
                f"{label} is no PyTorch archive, or one of PyTorch before 1.6; if you trust it, rewrite it "
                "with torch.save(torch.load(file, weights_only=True), file)"
            )
        stream.seek(0)
        try:
            _check_byte_order(stream, label)
            stream.seek(0)
            names = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
            stand_ins = [(_Unneeded, name) for name in names if name.startswith(_UNNEEDED)]
            stream.seek(0)
            allowed = torch.serialization.safe_globals([*_HARMLESS, *stand_ins])
            with _silenced(), FakeTensorMode(), allowed:
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise DamagedFileError(
                f"{label} holds something other than tensors, which loading could run; refused: {reason}"
            ) from error
        except CheckpointError:
            raise
        except OSError as error:
            # An offset in a damaged directory; other errors come from the storage.
            if error.errno != errno.EINVAL:
                raise
            raise DamagedFileError(f"{label} is damaged or truncated: {error.strerror}") from error
        # A forged pickle can raise anything in torch; in every case the file is damaged.
        except Exception as e:
            raise DamagedFileError(f"{label} is damaged or truncated: {str(e).partition(chr(10))[0]}") from e


@contextmanager
def _silenced() -> Iterator[None]:
    """Fake tensors log a traceback of what they cannot do; the error says enough."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = was


def place(tensor: torch.Tensor, file_bytes: int, label: str) -> Place:
    """Where the data of a tensor from `read_archive` are.

    Args:
        tensor: one without data.
        file_bytes: the archive's size.
        label: the archive's name, for messages.

    Raises:
        DamagedFileError: not inside the file.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        raise DamagedFileError(f"{label} has a tensor that is not kept as its plain elements; it is not read")
    storage = tensor.untyped_storage()
    start = getattr(storage, "_checkpoint_offset", None)
    if start is None:
        raise DamagedFileError(f"{label} has a tensor whose data are not in the archive")
    begin = int(start) + int(tensor.storage_offset()) * tensor.element_size()
    last = (
        sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else -1
    )
    if begin + (last + 1) * tensor.element_size() > min(file_bytes, int(start) + storage.nbytes()):
        raise DamagedFileError(f"{label} ends before the data of one of its tensors; it is truncated")
    return Place(
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
        offset_bytes=begin,
    )


def _check_byte_order(stream: Any, label: str) -> None:
    with zipfile.ZipFile(stream) as archive:
        orders = [name for name in archive.namelist() if name.rpartition("/")[2] == "byteorder"]
        # Not read by zipfile, which refuses archives without checksums, such as this tool writes.
        for name in orders:
            entry = archive.getinfo(name)
            stream.seek(entry.header_offset)
            raw = stream.read(30 + 1024 + entry.file_size)
            begin = 30 + int.from_bytes(raw[26:28], "little") + int.from_bytes(raw[28:30], "little")
            if raw[begin : begin + entry.file_size] == b"big":
                raise DamagedFileError(f"{label} was written on a big-endian machine; it is not read")
