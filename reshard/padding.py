"""Elements of stored tensors that belong to no logical one: padded vocabularies. They must be zero."""

from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np

from .dtypes import dtype
from .errors import DamagedFileError
from .formats.base import Source
from .layout import Box, strips, volume, whole
from .plan import without
from .regions import gather
from .storage import Folder
from .tensors import Chunk, FileRegion, StoredTensor

#: Read at once; padding is at most some hundred rows.
_LONGEST_BYTES: Final = 1 << 20


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Padding in a file.

    Attributes:
        tensor: the stored tensor's name.
        region: where it is; its box is in the stored tensor.
        itemsize_bytes: of one element.
    """

    tensor: str
    region: FileRegion
    itemsize_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all its elements."""
        return volume(self.region.box) * self.itemsize_bytes


def gaps(source: Source) -> Iterator[Gap]:
    """What no chunk covers, in regions that fit into memory."""
    for file in source.files:
        for stored in file.tensors:
            itemsize = dtype(stored.dtype).itemsize_bytes
            for box in _uncovered(stored):
                for strip in strips([end - begin for begin, end in box], _LONGEST_BYTES // itemsize):
                    part = tuple((o + b, o + e) for (o, _), (b, e) in zip(box, strip, strict=True))
                    yield Gap(
                        tensor=stored.name, region=_region(stored, file.name, part), itemsize_bytes=itemsize
                    )


def _uncovered(stored: StoredTensor) -> list[Box]:
    left = [whole(stored.shape)]
    for chunk in stored.chunks:
        left = [rest for box in left for rest in without(box, _covered(chunk, len(stored.shape)))]
    return [box for box in left if volume(box)]


def _covered(chunk: Chunk, dims: int) -> Box:
    """The box of a chunk in the stored tensor, which may have more dimensions."""
    box = chunk.box[::-1] if chunk.is_swapped else chunk.box
    extents = [1] * (dims - len(box)) + [end - begin for begin, end in box]
    return tuple((at, at + extent) for at, extent in zip(chunk.at, extents, strict=True))


def _region(stored: StoredTensor, file: str, box: Box) -> FileRegion:
    strides = stored.element_strides()
    all_of_it = FileRegion(
        file=file, box=whole(stored.shape), offset_bytes=stored.offset_bytes, strides=strides
    )
    return all_of_it.part(box, dtype(stored.dtype).itemsize_bytes)


def check_zero(folder: Folder, gap: Gap) -> None:
    """Check that padding is zero.

    Raises:
        DamagedFileError: it is not.
    """
    raw = np.empty(gap.size_bytes, np.uint8)
    shape = [end - begin for begin, end in gap.region.box]
    view = raw.view(f"u{gap.itemsize_bytes}").reshape(shape)
    gather(gap.region, view, np.empty_like(raw), folder.read_into)
    if raw.any():
        raise DamagedFileError(
            f"the padding of {gap.tensor} in {folder.path(gap.region.file)} is not zero: its bytes were "
            "changed; cut the checkpoint again"
        )
