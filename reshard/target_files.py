"""Target files on the disk: created with holes where data will be, completed when every digest is known."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .containers import LaidOutFile, filled_in
from .manifest import FILE

#: From this size on a write is started on the disk at once.
_WRITE_BACK_BYTES: Final = 256 << 10


def create(laid_out: LaidOutFile, path: Path) -> None:
    """Write a file to `path` with everything but its tensors' data; those regions are holes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for at, raw in laid_out.parts:
            stream.seek(at)
            stream.write(raw)
        stream.truncate(laid_out.size_bytes)


def reserve(path: Path, size_bytes: int) -> None:
    """Allocate the file's blocks, where the filesystem can, and wait until its head is on the disk.

    Raises:
        OSError: ENOSPC.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def renew_head(laid_out: LaidOutFile, path: Path) -> None:
    """Write the head again: a run may have been killed while it filled digests in."""
    with path.open("r+b") as stream:
        stream.write(laid_out.head)


def fill_in(laid_out: LaidOutFile, path: Path, digests: list[str]) -> None:
    """Put digests in the places that `pending` marked, and wait until they are on the disk.

    Args:
        laid_out: the file as it was created.
        path: where it is.
        digests: by number.
    """
    with path.open("r+b") as stream:
        stream.write(filled_in(laid_out.head, digests))
        stream.flush()
        os.fsync(stream.fileno())


def write_side_files(side_files: Mapping[str, bytes], folder: Path, digests: list[str]) -> None:
    """Write the small files beside the shards, with the digests in their places.

    Args:
        side_files: name relative to `folder` → bytes, digests pending.
        folder: that of the finished output; the files' folders exist.
        digests: by number.
    """
    for name, raw in side_files.items():
        path = folder / name
        with path.open("wb") as stream:
            # Only the manifest has marks; a copied file may contain the same text by chance.
            stream.write(filled_in(raw, digests) if path.name == FILE else raw)
            stream.flush()
            os.fsync(stream.fileno())


class OpenFiles:
    """Target files, written at any place by any thread."""

    def __init__(self, root: str) -> None:
        """Files are named relative to `root`, and exist."""
        self._root = root
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()
        self._touched: set[str] = set()

    def write(self, file: str, offset: int, data: memoryview) -> None:
        """Write all of `data` at byte `offset`.

        Args:
            file: relative to the root.
            offset: of the first byte.
            data: what belongs there.
        """
        descriptor = self._descriptor(file)
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
        if len(data) >= _WRITE_BACK_BYTES:
            # Starts writeback of this range. Without it Linux waits until dirty pages reach their limit, then
            # blocks the workers, while the disk has been idle until then.
            os.posix_fadvise(descriptor, offset, len(data), os.POSIX_FADV_DONTNEED)
        # After the write: a `sync` that ran meanwhile may not have covered these bytes, so the next one must.
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
            descriptor = self._open.get(file)
            if descriptor is None:
                descriptor = self._open[file] = os.open(
                    os.path.join(self._root, file), os.O_WRONLY | os.O_CLOEXEC
                )
            return descriptor
