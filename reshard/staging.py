"""The folder in which a run keeps unfinished files, and how it gets its final name."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from .errors import CheckpointError, DiskSpaceError, OutputExistsError
from .journal import Journal
from .manifest import FILE

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCAL_SCHEMES: Final = ("file://", "local://")


class Stage:
    """The hidden folder beside an output that holds everything until it is finished.

    Attributes:
        output: the final name.
        folder: the staging folder.
        tree: what is being filled, or is finished.
        fresh: the files of a new run, until all of them have their headers.
        replaced: what stood at `output` and is to be overwritten.
        journal: what was done.
    """

    def __init__(self, output: Path) -> None:
        """Nothing is touched yet; `output` is absolute."""
        self.output = output
        self.folder = output.parent / f".{output.name}.partial"
        self.tree = self.folder / "tree"
        self.fresh = self.folder / "fresh"
        self.replaced = self.folder / "replaced"
        self.journal = Journal(self.folder)
        self._made: list[Path] = []

    @property
    def is_published(self) -> bool:
        """Whether a run was killed after it had given everything its final name."""
        return self.journal.is_finished() and not self.tree.exists() and self.output.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One run at a time for one output.

        Raises:
            OutputExistsError: another run is at it, or nothing can be written there.
            DiskSpaceError: not even a folder fits on the disk.
        """
        descriptor = self._lock()
        try:
            # A run that was killed between two renames has left the old output under another name.
            if self.replaced.exists() and not os.path.lexists(self.output):
                self.replaced.rename(self.output)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Before the first byte is moved an error leaves everything as it was, an interrupted run too.

        Raises:
            DiskSpaceError: there is no room for the headers.
        """
        shutil.rmtree(self.fresh, ignore_errors=True)
        try:
            yield
        except BaseException as error:
            if self.journal.has_begun() and self.tree.is_dir():
                shutil.rmtree(self.fresh, ignore_errors=True)
                advice = "what an interrupted run has done is kept"
            else:
                self.discard()
                advice = "nothing was written"
            if isinstance(error, OSError) and error.errno in _FULL:
                raise self._full(error, advice) from error
            raise

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Bad data remove everything; after a full disk, a lost connection or an interrupt it is kept.

        Raises:
            DiskSpaceError: the disk is full.
        """
        try:
            yield
        except CheckpointError:
            self.discard()
            raise
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise self._full(
                error, "what was done is kept: make room and give the same command again"
            ) from error

    def publish(self) -> None:
        """Give the tree its final name; what it replaces is deleted afterwards."""
        if self.output.exists():
            shutil.rmtree(self.replaced, ignore_errors=True)
            self.output.rename(self.replaced)
        try:
            self.tree.rename(self.output)
        except OSError:
            if self.replaced.exists():
                self.replaced.rename(self.output)
            raise
        sync_folder(self.output.parent)

    def remove(self) -> None:
        """Delete what is left once everything has its final name; the journal last."""
        for path in (self.replaced, self.fresh, self.tree):
            shutil.rmtree(path, ignore_errors=True)
        self.journal.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Delete everything, with the folders that were created above the output."""
        self.remove()
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def _lock(self) -> int:
        while True:
            try:
                self._make()
                # A link that leads elsewhere is refused.
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(self.folder, flags)
            except FileNotFoundError:
                continue  # another run has just removed it
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(self.folder)):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise OutputExistsError(
                    f"another run is writing {self.output}; wait for it, or stop it"
                ) from None
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def _make(self) -> None:
        parents = [p for p in self.folder.parents if not p.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            for folder in parents:
                with suppress(OSError):
                    folder.rmdir()
            if error.errno in _FULL:
                raise self._full(error, "nothing was written") from error
            if isinstance(error, FileNotFoundError):
                raise
            raise self._unwritable(error) from error
        self._made = parents or self._made

    def _unwritable(self, error: OSError) -> OutputExistsError:
        return OutputExistsError(
            f"{self.output} cannot be written: {error.strerror} ({error.filename}); give another `output`"
        )

    def _full(self, error: OSError, advice: str) -> DiskSpaceError:
        return DiskSpaceError(f"the disk of {self.output.parent} is full ({error.strerror}); {advice}")


def check_place(output: Path, address: str) -> None:
    """Check that neither of source and output is inside the other.

    Raises:
        OutputExistsError: they do.
    """
    for scheme in _LOCAL_SCHEMES:
        address = address.removeprefix(scheme)
    if "://" in address:
        return
    source, target = Path(os.path.realpath(address)), Path(os.path.realpath(output))
    if target == source:
        raise OutputExistsError(f"`output` {output} is the source itself; give another folder")
    if source in target.parents:
        raise OutputExistsError(f"`output` {output} is inside the source {address}; give a folder elsewhere")
    if target in source.parents:
        raise OutputExistsError(f"`output` {output} holds the source {address}; give another folder")


def check_output(output: Path, *, overwrite: bool) -> None:
    """Check that the output may have its name.

    Raises:
        OutputExistsError: something stands there that may not, or cannot, be replaced.
    """
    if not os.path.lexists(output):
        return
    if os.path.ismount(output):
        raise OutputExistsError(f"{output} is where a disk is mounted; give a folder inside it")
    if output.is_dir() and next(output.iterdir(), None) is None:
        return
    if not overwrite:
        raise OutputExistsError(f"{output} exists; give another `output`, or set `overwrite`")
    if not _is_ours(output):
        raise OutputExistsError(
            f"{output} exists and holds more than this tool has written; it is not overwritten"
        )


def _is_ours(output: Path) -> bool:
    """Whether it is a set, or has nothing in it but the sets of several degrees."""
    if not output.is_dir():
        return False
    return (output / FILE).is_file() or all(
        one.name.startswith("tp") and (one / FILE).is_file() for one in output.iterdir()
    )


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
