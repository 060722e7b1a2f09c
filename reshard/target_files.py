"""Target files on the disk: created with holes where data will be, completed when every digest is known."""

import os
from collections.abc import Mapping
from pathlib import Path

from .containers import LaidOutFile, filled_in
from .manifest import FILE


def create(laid_out: LaidOutFile, path: Path) -> None:
    """Write a file to `path` with everything but its tensors' data; those regions are holes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for at, raw in laid_out.parts:
            stream.seek(at)
            stream.write(raw)
        stream.truncate(laid_out.size_bytes)


def reserve(path: Path, size_bytes: int) -> None:
    """Take the space on the disk, where the filesystem can, and see to it that the head is there.

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
    """Put digests in the places that `pending` marked, and see to it that they are on the disk.

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
            # Only ours has marks; a copied text may say whatever it likes.
            stream.write(filled_in(raw, digests) if path.name == FILE else raw)
            stream.flush()
            os.fsync(stream.fileno())
