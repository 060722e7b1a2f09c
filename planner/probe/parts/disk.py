"""Cold reads of a local disk, by block size and number of readers.

A file of random bytes is written and evicted from the page cache; then it is read as a checkpoint is (in
order, through the cache), and past the cache in blocks at random places.
"""

import mmap
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from planner.probe.findings import Findings
from planner.probe.fits import Measurement, measured, rate

FILE_BYTES: Final = 512 * 2**20
#: Writing stops after so long; the file is then as large as it has become, at least `_LEAST_BYTES`.
_WRITE_S: Final = 4.0
_LEAST_BYTES: Final = 32 * 2**20
_CHUNK: Final = 4 * 2**20
_PAGE: Final = 4096
_BLOCKS: Final = (128 * 2**10, 2**20, 8 * 2**20)
_READERS: Final = (1, 4, 16)
#: File systems that are in memory, or on another machine.
_NOT_LOCAL: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "nfs", "nfs4", "cifs", "smb3", "ceph", "9p"})
#: Each way of reading stops after so long.
_WAY_S: Final = 0.2


def measure(findings: Findings, folder: Path) -> None:
    """Capacity, sequential read rate, latency; block sizes and queue depths as details.

    Args:
        findings: filled.
        folder: on the disk in question.

    Raises:
        OSError: the folder cannot be written, or its file system cannot be read past the cache.
        ValueError: its file system is in memory or on another machine.
    """
    kind = file_system(folder)
    if kind in _NOT_LOCAL or kind.startswith("fuse"):
        raise ValueError(f"{folder} is on {kind}, which is no local disk; name a folder that is on one")
    capacity = shutil.disk_usage(folder).free
    with _random_file(folder) as file:
        rates = [size / seconds for size, seconds in (_sequential(file) for _ in range(3))]
        findings.quantities["disk.read_bytes_per_s"] = measured(
            rates, f"{_size(file.stat().st_size)} read in order, page cache evicted before"
        )
        findings.quantities["disk.capacity_bytes"] = Measurement(
            value=capacity, spread=0.0, num_samples=1, method="free space of the file system"
        )
        seconds = _direct(file, _PAGE, num_readers=1)
        findings.quantities["disk.latency_s"] = measured(
            seconds, "4 KiB at random places, one at a time, past the page cache"
        )
        found = {}
        for block in _BLOCKS:
            for readers in _READERS:
                start = time.perf_counter()
                times = _direct(file, block, num_readers=readers)
                whole = time.perf_counter() - start
                found[f"{_size(block)} x {readers}"] = rate(
                    len(times) * block, [whole], "random blocks"
                ).value
        findings.series["disk read past the cache, bytes/s by block and readers"] = found


@contextmanager
def _random_file(folder: Path) -> Iterator[Path]:
    """A file on the disk itself, gone afterwards."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".probe-")
    path = Path(name)
    try:
        chunk, begun = os.urandom(_CHUNK), time.perf_counter()
        for written in range(0, FILE_BYTES, _CHUNK):
            if written >= _LEAST_BYTES and time.perf_counter() - begun > _WRITE_S:
                break
            # Alike chunks could be stored once by a disk that looks for them.
            os.write(handle, written.to_bytes(8, "little") + chunk[8:])
            if written % (16 * _CHUNK) == 0:
                os.fdatasync(handle)
        os.fsync(handle)
        yield path
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def _sequential(file: Path) -> tuple[int, float]:
    """Bytes and seconds of one cold read from beginning to end."""
    buffer = bytearray(_CHUNK)
    with file.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start, total = time.perf_counter(), 0
        while count := stream.readinto(buffer):
            total += count
        return total, time.perf_counter() - start


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, as in `ext4`; empty when the kernel does not say.

    Source: proc(5), /proc/self/mountinfo.
    """
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        if mount.split()[2] == wanted:
            return rest.split()[0]
    return ""


def _direct(file: Path, block: int, *, num_readers: int) -> list[float]:
    """Seconds of each read of `block` bytes at random places, `num_readers` at a time."""
    places = file.stat().st_size // block
    deadline = time.perf_counter() + _WAY_S

    def reader(seed: int) -> list[float]:
        choose = random.Random(seed)
        found: list[float] = []
        # O_DIRECT wants aligned memory, which an anonymous mapping is.
        with mmap.mmap(-1, max(block, _PAGE)) as buffer:
            handle = os.open(file, os.O_RDONLY | os.O_DIRECT)
            try:
                while not found or time.perf_counter() < deadline:
                    start = time.perf_counter()
                    os.preadv(handle, [buffer], choose.randrange(places) * block)
                    found.append(time.perf_counter() - start)
            finally:
                os.close(handle)
        return found

    with ThreadPoolExecutor(num_readers) as pool:
        return [one for found in pool.map(reader, range(num_readers)) for one in found]


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 2**20 else f"{num_bytes >> 10} KiB"
