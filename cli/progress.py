"""A progress bar of bytes on standard error, where somebody looks at a screen."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class ByteBar:
    """Counts bytes; any thread may advance it."""

    def __init__(self, progress: Progress | None, label: str) -> None:
        """Nothing is expected yet; without `progress` nothing is ever shown."""
        self._progress = progress
        self._task = None if progress is None else progress.add_task(label, total=None)

    def expect(self, total: int) -> None:
        """Say how many bytes there will be."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def advance(self, count: int) -> None:
        """Say that so many more are done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count)


@contextmanager
def byte_bar(label: str, *, is_shown: bool) -> Iterator[ByteBar]:
    """A bar with bytes per second and the time left, gone when the work is done; none in a pipe."""
    if not is_shown or not sys.stderr.isatty():
        yield ByteBar(None, label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield ByteBar(progress, label)
