"""A work folder in memory where there is one: thousands of small files are written, and each made durable."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_MEMORY: Final = Path("/dev/shm")
_NEEDED_BYTES: Final = 512 << 20


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, removed afterwards; on a disk, every flush would wait for it."""
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _NEEDED_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="reshard-test-", dir=_MEMORY) as folder:
        yield Path(folder)
