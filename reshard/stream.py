"""Carries out a plan: reads strips of logical tensors, hashes, casts, and writes them to all their targets.

Every worker has its own buffers, reused for every strip, so memory does not depend on the model.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from .dtypes import dtype
from .errors import DamagedFileError, InconsistentShardsError, MemoryBudgetError
from .layout import Box, aligned_strips, overlap, strips
from .plan import TensorCopy
from .regions import gather, is_scattered, scatter, within
from .storage import Folder
from .tensors import FileRegion

#: Strips that fit a core's share of the cache are copied fastest (measured: 8 MB, 6–7 GB/s strided).
_STRIP_BYTES: Final = 8 << 20
_SMALLEST_STRIP_BYTES: Final = 64 << 10
#: From this size on a write is worth a request to the disk of its own.
_WRITE_BACK_BYTES: Final = 256 << 10
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


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How much memory and how many threads a run may use.

    Attributes:
        buffer_bytes: for all buffers together.
        jobs: threads.
    """

    buffer_bytes: int
    jobs: int

    @property
    def strip_bytes(self) -> int:
        """The longest strip: a worker holds one as read, one reordered and one cast."""
        return self.buffer_bytes // self.jobs // 3


def fit_budget(memory_bytes: int, jobs: int, used_bytes: int) -> Budget:
    """The buffers that fit into `memory_bytes` when the process itself already uses `used_bytes`.

    Raises:
        MemoryBudgetError: not even the smallest buffers do.
    """
    free = memory_bytes - used_bytes
    smallest = 3 * _SMALLEST_STRIP_BYTES
    if free < smallest:
        raise MemoryBudgetError(
            f"--memory {memory_bytes >> 20}MiB is too little: the process itself uses "
            f"{used_bytes >> 20} MiB; give at least {(used_bytes + smallest >> 20) + 16}MiB"
        )
    return Budget(buffer_bytes=free, jobs=max(1, min(jobs, free // smallest)))


class _Buffers:
    """One worker's."""

    def __init__(self, size_bytes: int) -> None:
        self.strip = np.empty(size_bytes, np.uint8)
        self.scratch = np.empty(size_bytes, np.uint8)
        self.cast = np.empty(size_bytes, np.uint8)


class Stream:
    """One run over a plan."""

    def __init__(
        self,
        source: Folder,
        write: Write,
        budget: Budget,
        *,
        cast: Cast | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare; `progress` is told of bytes read, from any thread."""
        self._source, self._write, self._budget = source, write, budget
        self._cast, self._progress = cast, progress
        self._stop = threading.Event()
        self._free: queue.SimpleQueue[_Buffers] = queue.SimpleQueue()
        for _ in range(budget.jobs):
            # np.empty takes no memory before it is written to.
            self._free.put(_Buffers(budget.strip_bytes))

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
        pool = ThreadPoolExecutor(self._budget.jobs, thread_name_prefix="reshard")
        try:
            # All at once: the workers go on while the caller makes durable what they have done.
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
            return self._copy_with(copy, buffers)
        finally:
            self._free.put(buffers)

    def _copy_with(self, copy: TensorCopy, buffers: _Buffers) -> Digests:
        read = hashlib.sha256()
        is_cast = copy.dtype != copy.target_dtype
        written = hashlib.sha256() if is_cast else read
        itemsizes = [dtype(d).itemsize_bytes for d in (copy.dtype, copy.target_dtype)]
        overflows = False
        for strip in self._strips(copy, max(itemsizes)):
            if self._stop.is_set():
                break
            found = _view(buffers.strip, strip, itemsizes[0])
            count = self._read(copy, strip, found, buffers)
            read.update(_raw(found).data)
            made = found
            if is_cast:
                assert self._cast is not None
                made = _view(buffers.cast, strip, itemsizes[1])
                overflows |= self._cast(_raw(found), _raw(made), copy.dtype, copy.target_dtype)
                written.update(_raw(made).data)
            self._give(made, strip, copy.targets, buffers)
            self._progress(count)
        digest = read.hexdigest()
        self._check_digest(copy, digest)
        return Digests(name=copy.name, source=digest, target=written.hexdigest(), overflows=overflows)

    def _give(self, made: NDArray[Any], box: Box, targets: Iterable[FileRegion], buffers: _Buffers) -> None:
        """Write what the targets have of `made`, the elements of `box`."""
        for target in targets:
            common = overlap(box, target.box)
            if common is not None:
                part = target.part(common, made.itemsize)
                scatter(part, made[within(common, box)], buffers.scratch, self._write)

    def _check_digest(self, copy: TensorCopy, digest: str) -> None:
        if copy.digest is not None and copy.digest != digest and not self._stop.is_set():
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
        longest = self._budget.strip_bytes // itemsize
        if not any(map(is_scattered, regions)):
            return strips(copy.shape, min(longest, _STRIP_BYTES // itemsize))
        return aligned_strips(copy.shape, longest, {bound for p in regions for bound in p.box[0]})

    def _read(self, copy: TensorCopy, strip: Box, found: NDArray[Any], buffers: _Buffers) -> int:
        size, count = found.itemsize, 0
        for region in copy.sources:
            box = overlap(strip, region.box)
            if box is not None:
                view = found[within(box, strip)]
                gather(region.part(box, size), view, buffers.scratch, self._source.read_into)
                count += view.nbytes
        for region in copy.replicas:
            box = overlap(strip, region.box)
            if box is not None:
                count += self._compare(copy, region.part(box, size), found[within(box, strip)], buffers)
        return count

    def _compare(self, copy: TensorCopy, region: FileRegion, view: NDArray[Any], buffers: _Buffers) -> int:
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


class Files:
    """Target files, written at any place by any thread."""

    def __init__(self, root: str) -> None:
        """Files are named relative to `root`, and exist."""
        self._root = root
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()
        self._touched: set[str] = set()

    def write(self, file: str, offset: int, data: memoryview) -> None:
        """Write all of `data` at byte `offset`."""
        descriptor = self._descriptor(file)
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
        if len(data) >= _WRITE_BACK_BYTES:
            # Linux begins to write such a range back. Left to itself it waits until memory is full of dirty
            # pages, then makes the workers wait, and the disk has idled until then.
            os.posix_fadvise(descriptor, offset, len(data), os.POSIX_FADV_DONTNEED)
        # Only now: a `sync` that runs meanwhile may have missed these bytes, so the next one must not.
        with self._lock:
            self._touched.add(file)

    def sync(self) -> None:
        """Wait until everything written so far is on the disk."""
        with self._lock:
            touched, self._touched = self._touched, set()
            descriptors = [self._open[name] for name in touched]
        for descriptor in descriptors:
            os.fdatasync(descriptor)

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()
            self._touched.clear()

    def _descriptor(self, file: str) -> int:
        with self._lock:
            found = self._open.get(file)
            if found is None:
                found = self._open[file] = os.open(os.path.join(self._root, file), os.O_WRONLY | os.O_CLOEXEC)
            return found
