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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from planner.probe.findings import Findings
from planner.probe.fits import Measurement, measured, rate

FILE_BYTES: Final = 256 * 2**20
#: Times that it is read in order: writing takes longer than reading, so a small file is read often.
_SEQUENTIAL: Final = 5
#: Writing stops after so long; the file is then as large as it has become, at least `_LEAST_BYTES`.
_WRITE_S: Final = 3.0
_LEAST_BYTES: Final = 32 * 2**20
_CHUNK: Final = 4 * 2**20
_PAGE: Final = 4096
_BLOCKS: Final = (128 * 2**10, 2**20, 8 * 2**20)
_READERS: Final = (1, 4, 16)
#: File systems that are in memory, or on another machine.
_NOT_LOCAL: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "nfs", "nfs4", "cifs", "smb3", "ceph", "9p"})
#: Each way of reading stops after so long.
_WAY_S: Final = 0.2


def measure(findings: Findings, folder: str) -> None:
    """Capacity, sequential read rate, latency; block sizes and queue depths as details.

    A folder that cannot be written, or whose file system is in memory, on another machine or not to be read
    past the cache, makes a sentence.

    Args:
        findings: filled.
        folder: on the disk in question.
    """
    findings.attempt("the disk", lambda found: _disk(found, Path(folder)))


def _disk(findings: Findings, folder: Path) -> None:
    kind = file_system(folder)
    if kind in _NOT_LOCAL or kind.startswith("fuse"):
        raise ValueError(f"{folder} is on {kind}, which is no local disk; name a folder that is on one")
    capacity = shutil.disk_usage(folder).free
    with _random_file(folder) as file:
        rates = [file.num_bytes / _sequential(file) for _ in range(_SEQUENTIAL)]
        findings.quantities["disk.read_bytes_per_s"] = measured(
            rates, f"{_size(file.num_bytes)} read in order, page cache evicted before"
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


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """An open file that has no name.

    Attributes:
        cached: a handle that reads through the page cache.
        direct: one that reads past it.
        num_bytes: its size.
    """

    cached: int
    direct: int
    num_bytes: int


@contextmanager
def _random_file(folder: Path) -> Iterator[_File]:
    """A file on the disk itself. It loses its name at once, so that nothing is left however this ends."""
    with ExitStack() as handles:

        def kept(handle: int) -> int:
            handles.callback(os.close, handle)
            return handle

        written, name = tempfile.mkstemp(dir=folder, prefix=".probe-")
        try:
            kept(written)
            cached, direct = (kept(os.open(name, os.O_RDONLY | flag)) for flag in (0, os.O_DIRECT))
        finally:
            os.unlink(name)
        yield _File(cached=cached, direct=direct, num_bytes=_fill(written))


def _fill(handle: int) -> int:
    """Random bytes down to the disk; how many there are."""
    chunk, begun, num_bytes = os.urandom(_CHUNK), time.perf_counter(), 0
    while num_bytes < FILE_BYTES:
        if num_bytes >= _LEAST_BYTES and time.perf_counter() - begun > _WRITE_S:
            break
        # Alike chunks could be stored once by a disk that looks for them.
        _write_all(handle, num_bytes.to_bytes(8, "little") + chunk[8:])
        if num_bytes % (16 * _CHUNK) == 0:
            os.fdatasync(handle)
        num_bytes += _CHUNK
    os.fsync(handle)
    return num_bytes


def _write_all(handle: int, data: bytes) -> None:
    """A disk that is nearly full takes a part first; the next write then says that it is full."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sequential(file: _File) -> float:
    """Seconds of one cold read from beginning to end."""
    buffer = bytearray(_CHUNK)
    os.posix_fadvise(file.cached, 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    for place in range(0, file.num_bytes, _CHUNK):
        os.preadv(file.cached, [buffer], place)
    return time.perf_counter() - start


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


def _direct(file: _File, block: int, *, num_readers: int) -> list[float]:
    """Seconds of each read of `block` bytes at random places, `num_readers` at a time."""
    places = file.num_bytes // block
    deadline = time.perf_counter() + _WAY_S

    def reader(seed: int) -> list[float]:
        choose_plan = random.Random(seed)
        found: list[float] = []
        # O_DIRECT wants aligned memory, which an anonymous mapping is.
        with mmap.mmap(-1, max(block, _PAGE)) as buffer:
            while not found or time.perf_counter() < deadline:
                start = time.perf_counter()
                os.preadv(file.direct, [buffer], choose_plan.randrange(places) * block)
                found.append(time.perf_counter() - start)
        return found

    with ThreadPoolExecutor(num_readers) as pool:
        return [one for found in pool.map(reader, range(num_readers)) for one in found]


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 2**20 else f"{num_bytes >> 10} KiB"
