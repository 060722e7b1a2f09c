"""Regions of files in and out of memory: as few and as long reads and writes as the layout allows."""

import itertools
import math
from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .layout import Box
from .tensors import FileRegion

Array = NDArray[Any]

#: Side in elements of the squares in which dimensions are swapped, so that lines of both stay in the L1 cache
#: (measured: 128 and 256 are four times as fast as swapping all at once).
_TILE: Final = 128


class _Order:
    """A region in the order in which the file has it.

    Attributes:
        dims: the region's dimensions, outermost in the file first.
        shape: their extents.
        run: elements that lie one behind the other.
        outer: how many of `dims` are walked, one run for every combination.
    """

    def __init__(self, region: FileRegion) -> None:
        extents = [end - begin for begin, end in region.box]
        self.dims = sorted(range(len(extents)), key=lambda i: (-region.strides[i], -extents[i]))
        self.shape = tuple(extents[i] for i in self.dims)
        self.strides = tuple(region.strides[i] for i in self.dims)
        self.run, self.outer = 1, len(self.dims)
        while self.outer and (self.shape[self.outer - 1] == 1 or self.strides[self.outer - 1] == self.run):
            self.outer -= 1
            self.run *= self.shape[self.outer]

    def offsets(self) -> Iterator[int]:
        """Where each run begins, in elements from the region's first one."""
        for index in itertools.product(*(range(n) for n in self.shape[: self.outer])):
            yield sum(i * s for i, s in zip(index, self.strides[: self.outer], strict=True))

    def runs(
        self, region: FileRegion, held: NDArray[np.uint8], itemsize: int
    ) -> Iterator[tuple[int, memoryview]]:
        """Each run's byte in the file, and its part of the region's bytes in the file's order."""
        step, flat = self.run * itemsize, held.data
        for number, offset in enumerate(self.offsets()):
            yield region.offset_bytes + offset * itemsize, flat[number * step : (number + 1) * step]

    @property
    def is_row_major(self) -> bool:
        """Whether the file has the dimensions in their own order, in one run."""
        real = [d for d, n in zip(self.dims, self.shape, strict=True) if n > 1]
        return self.outer == 0 and real == sorted(real)


def is_scattered(region: FileRegion) -> bool:
    """Whether the region's last dimension is not the file's innermost: strips of rows are short runs."""
    extents = [end - begin for begin, end in region.box]
    return len(extents) > 1 and extents[-1] > 1 and region.strides[-1] != 1


def within(box: Box, outer: Box) -> tuple[EllipsisType | slice, ...]:
    """The index that selects `box` in an array of the box `outer`: a view of it, always."""
    # Without the ellipsis, numpy answers the empty index of a scalar with a copy, and what is read is lost.
    return (..., *(slice(b - o, e - o) for (b, e), (o, _) in zip(box, outer, strict=True)))


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def gather(
    region: FileRegion, view: Array, scratch: NDArray[np.uint8], read: Callable[[str, int, memoryview], None]
) -> None:
    """Fill `view` with the region.

    Args:
        region: the region.
        view: an array of the region's shape, in any memory order.
        scratch: as many bytes as the region has.
        read: fills a buffer from a byte of a file.
    """
    if view.size == 0:
        return
    order = _Order(region)
    if order.is_row_major and view.flags.c_contiguous:
        read(region.file, region.offset_bytes, _bytes_of(view))
        return
    held = scratch[: view.nbytes]
    for at, part in order.runs(region, held, view.itemsize):
        read(region.file, at, part)
    _copy(_reordered(held, order, view.dtype), view)


def scatter(
    region: FileRegion, view: Array, scratch: NDArray[np.uint8], write: Callable[[str, int, memoryview], None]
) -> None:
    """Write `view`, which has the region's shape, to the region; arguments as for `gather`.

    Args:
        region: where the elements go.
        view: an array of the region's shape, in any memory order.
        scratch: as many bytes as the region has.
        write: writes a buffer to a byte of a file.
    """
    if view.size == 0:
        return
    order = _Order(region)
    if order.is_row_major and view.flags.c_contiguous:
        write(region.file, region.offset_bytes, _bytes_of(view))
        return
    held = scratch[: view.nbytes]
    _copy(view, _reordered(held, order, view.dtype))
    for at, part in order.runs(region, held, view.itemsize):
        write(region.file, at, part)


def _reordered(held: NDArray[np.uint8], order: _Order, kind: np.dtype[Any]) -> Array:
    """Bytes in the file's order as an array in the region's order of dimensions."""
    array: Array = held[: math.prod(order.shape) * kind.itemsize].view(kind).reshape(order.shape)
    back = [order.dims.index(i) for i in range(len(order.dims))]
    return array.transpose(back)


def _copy(given: Array, made: Array) -> None:
    """Copy elements; in tiles where one array's innermost dimension is not the other's, so in a transpose."""
    inner, outer = _innermost(given), _innermost(made)
    if inner == outer:
        made[...] = given
        return
    tile = [slice(None)] * given.ndim
    for row in range(0, given.shape[outer], _TILE):
        tile[outer] = slice(row, row + _TILE)
        for column in range(0, given.shape[inner], _TILE):
            tile[inner] = slice(column, column + _TILE)
            made[tuple(tile)] = given[tuple(tile)]


def _innermost(array: Array) -> int:
    """The dimension whose elements lie closest together."""
    real = [dim for dim, extent in enumerate(array.shape) if extent > 1]
    return min(real, key=lambda dim: array.strides[dim], default=0)
