"""Tensors that are encoded on their way: one logical tensor of the source becomes several of the target.

The encoders are in `quantize`; this module passes strips through them inside the same memory budget.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .dtypes import dtype
from .errors import MemoryBudgetError
from .formats.base import Source
from .layout import Box
from .plan import TensorCopy
from .stream import STRIP_BYTES, Buffers, Digests, Stream

#: Name of a derived tensor, box in it, and its elements there as an array of the box's shape.
Encoded = tuple[str, Box, NDArray[Any]]


class Encoder(Protocol):
    """Turns strips of rows of one tensor into strips of others. One object per tensor; strips come in order.

    Attributes:
        rows: strips have a multiple of so many rows, the last one excepted.
        is_two_pass: whether all strips must be seen by `observe` before any is encoded.
    """

    rows: int
    is_two_pass: bool

    def observe(self, box: Box, values: NDArray[Any]) -> None:
        """See a strip in the first pass of two."""

    def encode(self, box: Box, values: NDArray[Any]) -> Iterable[Encoded]:
        """Encode a strip.

        Args:
            box: the strip's, in the source's tensor.
            values: its elements, as unsigned integers of the source dtype's size.

        Returns:
            Strips of derived tensors, each tensor's in row-major order without gaps.
        """


class Transform(Protocol):
    """What becomes of a whole checkpoint."""

    def apply(self, source: Source) -> Source:
        """The source with the tensors and the configuration that the target has."""

    def derived(self) -> Mapping[str, tuple[str, ...]]:
        """Source tensor → tensors made from it; tensors that are not listed stay as they are."""

    def encoder(self, name: str) -> Encoder:
        """A new encoder of the source tensor called `name`."""


def row_strips(shape: tuple[int, ...], rows: int, longest: int, name: str) -> Iterator[Box]:
    """Boxes of whole rows that tile a matrix: multiples of `rows` rows, of at most `longest` elements.

    Args:
        shape: the matrix's dimensions; further ones belong to the columns.
        rows: coded together.
        longest: elements of a strip at most.
        name: the tensor's, for messages.

    Raises:
        MemoryBudgetError: not even `rows` rows fit.
    """
    columns = int(np.prod(shape[1:], dtype=np.int64))
    step = longest // max(columns, 1) // rows * rows
    if step == 0:
        raise MemoryBudgetError(
            f"{name}: {rows} rows of {columns} elements are coded together and do not fit the buffers; "
            "give more `memory_bytes`, or fewer `jobs`"
        )
    for begin in range(0, shape[0], step):
        yield ((begin, min(begin + step, shape[0])), *((0, n) for n in shape[1:]))


class EncodingStream(Stream):
    """A stream that encodes the tensors that have derived ones, and copies the others.

    Attributes:
        encoder: makes the encoder of the tensor with the name that it is given.
    """

    def __init__(self, *arguments: Any, encoder: Callable[[str], Encoder], **options: Any) -> None:
        """As `Stream`, with a maker of encoders.

        Args:
            *arguments: as for `Stream`.
            encoder: makes the encoder of the tensor with the name that it is given.
            **options: as for `Stream`.
        """
        super().__init__(*arguments, **options)
        self.encoder = encoder

    def copy_tensor(self, copy: TensorCopy, buffers: Buffers) -> Digests:
        """Encode the tensor where others are made from it; see `Stream.copy_tensor`."""
        if not copy.derived:
            return super().copy_tensor(copy, buffers)
        encoder = self.encoder(copy.name)
        longest = min(self.budget.strip_bytes, STRIP_BYTES) // dtype(copy.dtype).itemsize_bytes
        boxes = list(row_strips(copy.shape, encoder.rows, longest, copy.name))
        if encoder.is_two_pass:
            for box in boxes:
                encoder.observe(box, self.read_strip(copy, box, buffers)[0])
        source = hashlib.sha256()
        made = {derived.name: hashlib.sha256() for derived in copy.derived}
        targets = {derived.name: derived.targets for derived in copy.derived}
        for box in boxes:
            if self.is_stopped:
                break
            values, _ = self.read_strip(copy, box, buffers)
            source.update(values.reshape(-1).view(np.uint8).data)
            for name, at, array in encoder.encode(box, values):
                made[name].update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                self.write_box(array, at, targets[name], buffers)
            self.progress(values.nbytes)
        self.check_digest(copy, source.hexdigest())
        return Digests(
            name=copy.name,
            source=source.hexdigest(),
            target="",
            derived={name: sha.hexdigest() for name, sha in made.items()},
        )
