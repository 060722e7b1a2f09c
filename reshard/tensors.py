"""Where the bytes of a tensor lie: in files on one side, in the *logical* tensor on the other. Pure.

The logical tensors are those of the merged Hugging Face checkpoint. A file of any format and degree stores
tensors that consist of boxes of logical ones, so any format becomes any other by intersecting boxes.
"""

from collections.abc import Iterable

import msgspec

from .dtypes import dtype
from .layout import Box, Interval, whole


class LogicalTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of the merged checkpoint.

    Attributes:
        dtype: torch's name.
        shape: its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A box of a logical tensor, and where it begins in a stored one.

    Attributes:
        tensor: the logical tensor's name.
        box: in the logical tensor.
        at: in the stored tensor; it may have more dimensions than the box, which is then in the last ones.
        is_swapped: whether the box's two dimensions are the other way round in the stored tensor, as where
            one of both is a `[in, out]` Conv1D.
    """

    tensor: str
    box: Box
    at: tuple[int, ...]
    is_swapped: bool = False


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor in a file.

    Attributes:
        name: its key in the file.
        dtype: torch's name.
        shape: its dimensions, in the order in which the logical tensor has them.
        chunks: what it consists of. Regions that no chunk covers are padding, zero.
        transposed: whether the file has the last two dimensions swapped.
        offset_bytes: of its first element in the file; -1 before the file is laid out.
        strides: in elements, in the order of `shape`; empty: row-major, or its transpose.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    transposed: bool = False
    offset_bytes: int = -1
    strides: tuple[int, ...] = ()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The dimensions as the file has them."""
        return (*self.shape[:-2], self.shape[-1], self.shape[-2]) if self.transposed else self.shape

    @property
    def size_bytes(self) -> int:
        """Bytes of all its elements."""
        size = dtype(self.dtype).itemsize_bytes
        for extent in self.shape:
            size *= extent
        return size

    def element_strides(self) -> tuple[int, ...]:
        """Strides in elements, in the order of `shape`."""
        if self.strides:
            return self.strides
        strides = row_major(self.stored_shape)
        return (*strides[:-2], strides[-1], strides[-2]) if self.transposed else strides


class FileRegion(msgspec.Struct, frozen=True, kw_only=True):
    """A box of a logical tensor as a region of a file.

    Attributes:
        file: its name.
        box: in the logical tensor.
        offset_bytes: of the box's first element.
        strides: in elements, one per dimension of the box.
        rank: whose file it is, for messages; None where files belong to no rank.
    """

    file: str
    box: Box
    offset_bytes: int
    strides: tuple[int, ...]
    rank: int | None = None

    def part(self, box: Box, itemsize_bytes: int) -> "FileRegion":
        """The same region, narrowed to `box`, which lies inside it."""
        moved = sum((b[0] - a[0]) * s for a, b, s in zip(self.box, box, self.strides, strict=True))
        return msgspec.structs.replace(self, box=box, offset_bytes=self.offset_bytes + moved * itemsize_bytes)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def file_regions(stored: StoredTensor, file: str, rank: int | None) -> list[tuple[str, FileRegion]]:
    """The regions of `file` that `stored` gives to logical tensors, with those tensors' names.

    Args:
        stored: a tensor with its offset.
        file: the file's name.
        rank: whose file it is; None for a file of all ranks.
    """
    strides = stored.element_strides()
    itemsize = dtype(stored.dtype).itemsize_bytes
    named_regions = []
    for chunk in stored.chunks:
        offset = stored.offset_bytes + itemsize * sum(a * s for a, s in zip(chunk.at, strides, strict=True))
        used = strides[len(strides) - len(chunk.box) :]
        used = used[::-1] if chunk.is_swapped else used
        named_regions.append(
            (chunk.tensor, FileRegion(file=file, box=chunk.box, offset_bytes=offset, strides=used, rank=rank))
        )
    return named_regions


def copy_of(name: str, tensor: LogicalTensor, *, stored_as: str | None = None) -> StoredTensor:
    """A stored tensor that is all of a logical one.

    Args:
        name: the logical tensor's.
        tensor: the logical tensor.
        stored_as: the key in the file; None: the same name.
    """
    return StoredTensor(
        name=stored_as or name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        chunks=(Chunk(tensor=name, box=whole(tensor.shape), at=(0,) * len(tensor.shape)),),
    )


def along(name: str, tensor: LogicalTensor, dim: int, intervals: Iterable[Interval]) -> tuple[Chunk, ...]:
    """Chunks that put `intervals` of dimension `dim` one behind the other.

    Args:
        name: the logical tensor's.
        tensor: the logical tensor.
        dim: the dimension.
        intervals: of that dimension, in the order in which they are stored.
    """
    chunks, at = [], 0
    for begin, end in intervals:
        box = tuple((begin, end) if i == dim else (0, n) for i, n in enumerate(tensor.shape))
        start = tuple(at if i == dim else 0 for i in range(len(tensor.shape)))
        chunks.append(Chunk(tensor=name, box=box, at=start))
        at += end - begin
    return tuple(chunks)


def cut(name: str, tensor: LogicalTensor, dim: int, intervals: tuple[Interval, ...]) -> StoredTensor:
    """A stored tensor that is the `intervals` of a logical one along dimension `dim`.

    Args:
        name: the logical tensor's, and the key in the file.
        tensor: the logical tensor.
        dim: the dimension that is cut.
        intervals: of that dimension, in the order in which they are stored.
    """
    extent = sum(end - begin for begin, end in intervals)
    shape = tuple(extent if i == dim else n for i, n in enumerate(tensor.shape))
    return StoredTensor(
        name=name, dtype=tensor.dtype, shape=shape, chunks=along(name, tensor, dim, intervals)
    )


def padded_share(
    stored_as: str, name: str, tensor: LogicalTensor, rows: int, tp_size: int, tp_rank: int
) -> StoredTensor:
    """A rank's rows of a tensor that is padded to `rows`, a multiple of the degree; the rest is zero.

    Args:
        stored_as: the key in the file.
        name: the logical tensor's.
        tensor: the logical tensor, of which rows are cut.
        rows: of all ranks together, padding included.
        tp_size: the degree.
        tp_rank: the rank, from 0 on.
    """
    share = rows // tp_size
    begin, end = (min(row, tensor.shape[0]) for row in (tp_rank * share, (tp_rank + 1) * share))
    chunks = along(name, tensor, 0, [(begin, end)]) if begin < end else ()
    return StoredTensor(name=stored_as, dtype=tensor.dtype, shape=(share, *tensor.shape[1:]), chunks=chunks)
