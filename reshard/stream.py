"""Carries out a plan: reads strips of logical tensors, hashes, casts, and writes them to all their targets.

Every worker has its own buffers, reused for every strip, so memory does not depend on the model.
"""

import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from .budget import Budget
from .dtypes import dtype
from .errors import DamagedFileError, InconsistentShardsError
from .layout import Box, aligned_strips, overlap, strips
from .plan import TensorCopy
from .regions import gather, is_scattered, scatter, within
from .storage import Folder
from .tensors import FileRegion

#: Strips that fit a core's share of the cache are copied fastest (measured: 8 MB, 6–7 GB/s strided).
STRIP_BYTES: Final = 8 << 20
_UNSIGNED: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("u1"),
    2: np.dtype("u2"),
    4: np.dtype("u4"),
    8: np.dtype("u8"),
}

Write = Callable[[str, int, memoryview], None]


class Digests(msgspec.Struct, frozen=True, kw_only=True):
    """What a tensor was found to be.

    Attributes:
        name: its name.
        source: SHA-256 of its bytes in the source's dtype.
        target: the same in the targets' dtype.
        overflows: whether the cast made an infinity of a finite number.
        derived: SHA-256 of the tensors that were made from it.
    """

    name: str
    source: str
    target: str
    overflows: bool = False
    derived: dict[str, str] = {}


class Cast(Protocol):
    """Converts the elements in one buffer into another dtype in another buffer."""

    def __call__(self, given: NDArray[np.uint8], made: NDArray[np.uint8], source: str, target: str) -> bool:
        """Fill `made`; say whether a finite number became infinite."""


class Buffers:
    """One worker's, of a strip each.

    Attributes:
        strip: the elements as read.
        scratch: the elements in a file's order of dimensions.
        cast: the elements in the targets' dtype; replicas on their way to be compared.
    """

    def __init__(self, size_bytes: int) -> None:
        """Take memory for strips of at most `size_bytes`."""
        self.strip = np.empty(size_bytes, np.uint8)
        self.scratch = np.empty(size_bytes, np.uint8)
        self.cast = np.empty(size_bytes, np.uint8)


class Stream:
    """One run over a plan. A subclass that does more than copy and cast overrides `copy_tensor`.

    Attributes:
        budget: memory and threads.
        progress: told of bytes read, from any thread.
    """

    def __init__(
        self,
        source: Folder,
        write: Write,
        budget: Budget,
        *,
        cast: Cast | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            source: the folder that is read.
            write: called with a file, a byte of it, and what belongs there, from any thread.
            budget: memory and threads.
            cast: converts elements; needed where a copy's dtypes differ.
            progress: told of bytes read, from any thread.
        """
        self.budget, self.progress = budget, progress
        self._source, self._write, self._cast = source, write, cast
        self._stop = threading.Event()
        self._free: queue.SimpleQueue[Buffers] = queue.SimpleQueue()
        for _ in range(budget.jobs):
            # np.empty takes no memory before it is written to.
            self._free.put(Buffers(budget.strip_bytes))

    def run(self, copies: Iterable[TensorCopy]) -> Generator[Digests, None, None]:
        """Carry out `copies`, the largest first, and yield what each tensor was found to be.

        Closing the generator waits until no thread writes any more.

        Raises:
            InconsistentShardsError: two files hold different values of the same elements.
            DamagedFileError: a file is truncated, or a tensor is not what the source's manifest says.
            OSError: the disk is full, or fails.
        """
        todo = sorted(copies, key=lambda c: -c.read_bytes)
        done: queue.SimpleQueue[Future[Digests]] = queue.SimpleQueue()
        pool = ThreadPoolExecutor(self.budget.jobs, thread_name_prefix="reshard")
        try:
            # All at once: the workers go on while the caller syncs what they have written.
            for copy in todo:
                pool.submit(self._copy, copy).add_done_callback(done.put)
            for _ in todo:
                yield done.get().result()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _copy(self, copy: TensorCopy) -> Digests:
        buffers = self._free.get()
        try:
            return self.copy_tensor(copy, buffers)
        finally:
            self._free.put(buffers)

    @property
    def is_stopped(self) -> bool:
        """Whether the run was given up; tensors that are not whole yet need not be finished."""
        return self._stop.is_set()

    def copy_tensor(self, copy: TensorCopy, buffers: Buffers) -> Digests:
        """Do all that is to be done with one tensor; called by several threads, each with its own buffers.

        Raises:
            InconsistentShardsError: two files hold different values of the same elements.
            DamagedFileError: a file is truncated, or the tensor is not what the source's manifest says.
            OSError: the disk is full, or fails.
        """
        read = hashlib.sha256()
        is_cast = copy.dtype != copy.target_dtype
        written = hashlib.sha256() if is_cast else read
        itemsizes = [dtype(d).itemsize_bytes for d in (copy.dtype, copy.target_dtype)]
        overflows = False
        for strip in self._strips(copy, max(itemsizes)):
            if self.is_stopped:
                break
            values, count = self.read_strip(copy, strip, buffers)
            read.update(_raw(values).data)
            made = values
            if is_cast:
                assert self._cast is not None
                made = _view(buffers.cast, strip, itemsizes[1])
                overflows |= self._cast(_raw(values), _raw(made), copy.dtype, copy.target_dtype)
                written.update(_raw(made).data)
            self.write_box(made, strip, copy.targets, buffers)
            self.progress(count)
        digest = read.hexdigest()
        self.check_digest(copy, digest)
        return Digests(name=copy.name, source=digest, target=written.hexdigest(), overflows=overflows)

    def write_box(
        self, values: NDArray[Any], box: Box, targets: Iterable[FileRegion], buffers: Buffers
    ) -> None:
        """Write a box of a tensor to all files that have elements of it.

        Args:
            values: the elements, an array of the box's shape.
            box: in the logical tensor.
            targets: where the tensor goes.
            buffers: the thread's own.
        """
        for target in targets:
            common = overlap(box, target.box)
            if common is not None:
                part = target.part(common, values.itemsize)
                scatter(part, values[within(common, box)], buffers.scratch, self._write)

    def check_digest(self, copy: TensorCopy, digest: str) -> None:
        """Compare a tensor's SHA-256 with what the source says of it, unless the run was given up.

        Raises:
            DamagedFileError: it is another.
        """
        if copy.digest is not None and copy.digest != digest and not self.is_stopped:
            files = ", ".join(sorted({p.file for p in copy.sources}))
            raise DamagedFileError(
                f"{copy.name} in {files} is not what the manifest says it is: its bytes were changed; "
                "cut the checkpoint again"
            )

    def _strips(self, copy: TensorCopy, itemsize: int) -> Iterable[Box]:
        """Strips that fit the cache; long ones where the other order of dimensions would make short runs.

        A transposed region is one run where a strip has all of its rows, so strips end where regions do.
        """
        regions = (*copy.sources, *copy.replicas, *copy.targets)
        longest = self.budget.strip_bytes // itemsize
        if not any(map(is_scattered, regions)):
            return strips(copy.shape, min(longest, STRIP_BYTES // itemsize))
        return aligned_strips(copy.shape, longest, {bound for p in regions for bound in p.box[0]})

    def read_strip(self, copy: TensorCopy, strip: Box, buffers: Buffers) -> tuple[NDArray[Any], int]:
        """Read a box of a tensor, and compare it with its replicas.

        Args:
            copy: the tensor.
            strip: the box.
            buffers: the thread's own; the elements stay there until the next strip is read.

        Returns:
            The elements as unsigned integers of the dtype's size, in the box's shape; and the bytes read for
            them, those of replicas included.

        Raises:
            InconsistentShardsError: a replica has other values.
            DamagedFileError: a file is truncated.
        """
        values = _view(buffers.strip, strip, dtype(copy.dtype).itemsize_bytes)
        size, count = values.itemsize, 0
        for region in copy.sources:
            box = overlap(strip, region.box)
            if box is not None:
                view = values[within(box, strip)]
                gather(region.part(box, size), view, buffers.scratch, self._source.read_into)
                count += view.nbytes
        for region in copy.replicas:
            box = overlap(strip, region.box)
            if box is not None:
                count += self._compare(copy, region.part(box, size), values[within(box, strip)], buffers)
        return values, count

    def _compare(self, copy: TensorCopy, region: FileRegion, view: NDArray[Any], buffers: Buffers) -> int:
        # The buffer for the cast is not in use yet.
        other = buffers.cast[: view.nbytes].view(view.dtype).reshape(view.shape)
        gather(region, other, buffers.scratch, self._source.read_into)
        if not np.array_equal(other, view):
            raise InconsistentShardsError(
                f"{region.file} has other values of {copy.name} than {copy.sources[0].file}; "
                "these are shards of different models, or one is damaged"
            )
        return int(view.nbytes)


def _view(buffer: NDArray[np.uint8], box: Box, itemsize: int) -> NDArray[Any]:
    shape = tuple(end - begin for begin, end in box)
    count = int(np.prod(shape, dtype=np.int64))
    array: NDArray[Any] = buffer[: count * itemsize].view(_UNSIGNED[itemsize]).reshape(shape)
    return array


def _raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
