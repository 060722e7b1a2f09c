"""Cold reads of a local disk, by block size and number of readers.

A file of random bytes is written and evicted from the page cache. It is then read in two ways: sequentially
through the page cache, as a checkpoint is, and in blocks at random offsets, bypassing the page cache.
"""

import mmap
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from planner.probe.findings import Findings
from planner.probe.fits import Measurement, measured, rate

FILE_BYTES: Final = 256 * 2**20
#: Number of sequential reads: writing is slower than reading, so the file is small and read several times.
_SEQUENTIAL: Final = 5
#: Writing stops after this time, once the file has `_LEAST_BYTES`, even if it has fewer than `FILE_BYTES`.
_WRITE_S: Final = 3.0
_LEAST_BYTES: Final = 32 * 2**20
_CHUNK: Final = 4 * 2**20
_PAGE: Final = 4096
_BLOCKS: Final = (128 * 2**10, 2**20, 8 * 2**20)
_READERS: Final = (1, 4, 16)
#: File systems in memory, or on another machine.
_NOT_LOCAL: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "nfs", "nfs4", "cifs", "smb3", "ceph", "9p"})
#: Time budget for each combination of block size and number of readers.
_DIRECT_S: Final = 0.2


def measure(findings: Findings, folder: str) -> None:
    """Measure capacity, sequential read rate and latency; block sizes and numbers of readers as details.

    A sentence in `missing` says when the folder cannot be written, or its file system is in memory, on
    another machine, or does not support reads that bypass the page cache.

    Args:
        findings: the results are added to it.
        folder: folder on the disk to measure.
    """
    findings.attempt("the disk", lambda f: _disk(f, Path(folder)))


def _disk(findings: Findings, folder: Path) -> None:
    kind = file_system(folder)
    if kind in _NOT_LOCAL or kind.startswith("fuse"):
        raise ValueError(f"{folder} is on {kind}, which is not a local disk; choose a folder on one")
    capacity = shutil.disk_usage(folder).free
    with _random_file(folder) as file:
        rates = [file.num_bytes / _sequential(file) for _ in range(_SEQUENTIAL)]
        findings.quantities["disk.read_bytes_per_s"] = measured(
            rates, f"{_size(file.num_bytes)} read sequentially, page cache evicted before"
        )
        findings.quantities["disk.capacity_bytes"] = Measurement(
            value=capacity, spread=0.0, num_samples=1, method="free space of the file system"
        )
        seconds = _direct(file, _PAGE, num_readers=1)
        findings.quantities["disk.latency_s"] = measured(
            seconds, "4 KiB reads at random offsets, one at a time, bypassing the page cache"
        )
        rates_by_block = {}
        for block in _BLOCKS:
            for readers in _READERS:
                start = time.perf_counter()
                times = _direct(file, block, num_readers=readers)
                elapsed = time.perf_counter() - start
                bytes_per_s = rate(len(times) * block, [elapsed], "random blocks").value
                rates_by_block[f"{_size(block)} x {readers}"] = bytes_per_s
        findings.series["disk read past the cache, bytes/s by block and readers"] = rates_by_block


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """An open, unlinked file.

    Attributes:
        cached: file descriptor for reads through the page cache.
        direct: file descriptor for reads that bypass the page cache.
        num_bytes: size of the file.
    """

    cached: int
    direct: int
    num_bytes: int


@contextmanager
def _random_file(folder: Path) -> Iterator[_File]:
    """A file of random bytes on the disk. It is unlinked at once, so that no exit can leave it behind."""
    with ExitStack() as handles:

        def close_later(handle: int) -> int:
            handles.callback(os.close, handle)
            return handle

        written, name = tempfile.mkstemp(dir=folder, prefix=".probe-")
        try:
            close_later(written)
            cached, direct = (close_later(os.open(name, os.O_RDONLY | flag)) for flag in (0, os.O_DIRECT))
        finally:
            os.unlink(name)
        yield _File(cached=cached, direct=direct, num_bytes=_fill(written))


def _fill(handle: int) -> int:
    """Write random bytes and flush them to the disk; returns their number."""
    chunk, begun, num_bytes = os.urandom(_CHUNK), time.perf_counter(), 0
    while num_bytes < FILE_BYTES:
        if num_bytes >= _LEAST_BYTES and time.perf_counter() - begun > _WRITE_S:
            break
        # Identical chunks could be deduplicated by the disk.
        _write_all(handle, num_bytes.to_bytes(8, "little") + chunk[8:])
        if num_bytes % (16 * _CHUNK) == 0:
            os.fdatasync(handle)
        num_bytes += _CHUNK
    os.fsync(handle)
    return num_bytes


def _write_all(handle: int, data: bytes) -> None:
    """Write all of `data`: on a nearly full disk one call writes only a part, and the next one fails."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sequential(file: _File) -> float:
    """Seconds of one cold sequential read of the whole file."""
    buffer = bytearray(_CHUNK)
    os.posix_fadvise(file.cached, 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    for place in range(0, file.num_bytes, _CHUNK):
        os.preadv(file.cached, [buffer], place)
    return time.perf_counter() - start


def file_system(folder: Path) -> str:
    """The type of a folder's file system, such as `ext4`; empty when the kernel does not list it.

    Source: proc(5), /proc/self/mountinfo.
    """
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        if mount.split()[2] == wanted:
            return rest.split()[0]
    return ""


def _direct(file: _File, block: int, *, num_readers: int) -> list[float]:
    """Seconds of each read of `block` bytes at random offsets, with `num_readers` concurrent readers."""
    num_blocks = file.num_bytes // block
    deadline = time.perf_counter() + _DIRECT_S

    def reader(seed: int) -> list[float]:
        generator = random.Random(seed)
        samples: list[float] = []
        # O_DIRECT needs an aligned buffer; an anonymous mapping is aligned to pages.
        with mmap.mmap(-1, max(block, _PAGE)) as buffer:
            while not samples or time.perf_counter() < deadline:
                start = time.perf_counter()
                os.preadv(file.direct, [buffer], generator.randrange(num_blocks) * block)
                samples.append(time.perf_counter() - start)
        return samples

    with ThreadPoolExecutor(num_readers) as pool:
        return [seconds for samples in pool.map(reader, range(num_readers)) for seconds in samples]


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 2**20 else f"{num_bytes >> 10} KiB"
