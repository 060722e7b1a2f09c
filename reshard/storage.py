"""Where checkpoints are read from: a local folder, or any address that fsspec understands.

Reads are positioned, so several threads can share a folder.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol

from .errors import CheckpointError, DamagedFileError, MissingFileError, UnsupportedSourceError

_SCHEME: Final = "://"
#: Entries of fsspec's file information that change when the file's bytes do.
_MARKS: Final = ("size", "ETag", "etag", "md5Hash", "blob_id", "mtime", "created", "LastModified", "ino")


class Folder(Protocol):
    """Files that are read from. Names may have `/` in them."""

    @property
    def name(self) -> str:
        """The last part of its address."""

    def path(self, file: str) -> str:
        """Where `file` is, for messages."""

    def files(self) -> tuple[str, ...]:
        """The names of all files, sorted, relative to the folder; none that are hidden or unprintable."""

    def size(self, file: str) -> int:
        """Bytes of `file`; MissingFileError when it is not there."""

    def stamp(self, file: str) -> str:
        """Something that changes when the file does."""

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` on; DamagedFileError when the file ends before.

        Args:
            file: its name in the folder.
            offset: of the first byte.
            buffer: filled whole.
        """

    def open(self, file: str) -> IO[bytes]:
        """The file as a stream that can seek."""

    def close(self) -> None:
        """Let go of open files."""


def read(folder: Folder, file: str, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes of `file` from `offset` on, or all that follow.

    Args:
        folder: where the file is.
        file: its name.
        offset: of the first byte.
        size: bytes; None: all that follow.
    """
    wanted = folder.size(file) - offset if size is None else size
    buffer = bytearray(max(wanted, 0))
    folder.read_into(file, offset, memoryview(buffer))
    return bytes(buffer)


def open_folder(address: str | Path) -> Folder:
    """The folder at `address`: a path, or an address with a scheme such as `s3://bucket/model`.

    Raises:
        MissingFileError: no such folder.
        UnsupportedSourceError: no filesystem for the scheme is installed.
    """
    text = str(address)
    if _SCHEME in text:
        return RemoteFolder(text)
    with _named(text):
        if not Path(text).is_dir():
            raise MissingFileError(
                f"{text} is no folder; a checkpoint is given as the folder that holds its files"
            )
        # Path.rglob ignores folders that it may not list, and would return nothing.
        os.listdir(text)
    return LocalFolder(Path(text))


class LocalFolder:
    """A folder of this machine, read with `preadv` into the caller's buffers."""

    def __init__(self, folder: Path) -> None:
        """Nothing is opened yet."""
        self.folder = folder
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return os.fsencode(self.folder.resolve().name).decode(errors="replace")

    def path(self, file: str) -> str:
        return str(self.folder / file)

    def files(self) -> tuple[str, ...]:
        paths = (p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file())
        names = (str(p) for p in paths if not any(part.startswith(".") for part in p.parts))
        return tuple(sorted(name for name in names if name.isprintable()))

    def size(self, file: str) -> int:
        with _named(self.path(file)):
            return (self.folder / file).stat().st_size

    def stamp(self, file: str) -> str:
        with _named(self.path(file)):
            state = (self.folder / file).stat()
        return f"{state.st_size}-{state.st_mtime_ns}-{state.st_ino}"

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """See `reshard.storage.Folder.read_into`: by position, so that threads share a descriptor."""
        descriptor = self._descriptor(file)
        done = 0
        with _named(self.path(file)):
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
                if count == 0:
                    raise DamagedFileError(f"{self.path(file)} ends at byte {offset + done}; it is truncated")
                done += count

    def open(self, file: str) -> IO[bytes]:
        with _named(self.path(file)):
            return (self.folder / file).open("rb")

    def close(self) -> None:
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def _descriptor(self, file: str) -> int:
        with self._lock:
            descriptor = self._open.get(file)
            if descriptor is None:
                with _named(self.path(file)):
                    descriptor = os.open(self.folder / file, os.O_RDONLY | os.O_CLOEXEC)
                self._open[file] = descriptor
            return descriptor


class RemoteFolder:
    """A folder behind fsspec: every read is one request for a range of bytes."""

    def __init__(self, address: str) -> None:
        """List the folder.

        Raises:
            MissingFileError: nothing there.
            UnsupportedSourceError: the scheme needs a package that is not installed.
        """
        import fsspec

        self.address = address.rstrip("/")
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.address)
        except (ImportError, ValueError) as error:
            raise UnsupportedSourceError(f"{address} cannot be opened: {error}") from error
        with _named(address):
            entries: dict[str, Any] = self._system.find(self._root, detail=True)
        start = len(self._root.rstrip("/")) + 1
        self._entries = {path[start:]: entry for path, entry in entries.items() if path[start:]}
        if not self._entries:
            raise MissingFileError(f"{address} holds no files")

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def path(self, file: str) -> str:
        return f"{self.address}/{file}"

    def files(self) -> tuple[str, ...]:
        return tuple(sorted(n for n in self._entries if not any(p.startswith(".") for p in n.split("/"))))

    def size(self, file: str) -> int:
        return int(self._entry(file)["size"])

    def stamp(self, file: str) -> str:
        entry = self._entry(file)
        return "-".join(str(entry.get(key)) for key in _MARKS)

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """See `reshard.storage.Folder.read_into`: one request for the range."""
        self._entry(file)
        with _named(self.path(file)):
            raw = self._system.cat_file(f"{self._root}/{file}", start=offset, end=offset + len(buffer))
        if len(raw) != len(buffer):
            raise DamagedFileError(f"{self.path(file)} ends at byte {offset + len(raw)}; it is truncated")
        buffer[:] = raw

    def open(self, file: str) -> IO[bytes]:
        self._entry(file)
        with _named(self.path(file)):
            stream: IO[bytes] = self._system.open(f"{self._root}/{file}", "rb")
        return stream

    def close(self) -> None:
        """Nothing stays open between requests."""

    def _entry(self, file: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = self._entries[file]
        except KeyError:
            raise MissingFileError(f"{self.path(file)} is not there") from None
        return entry


@contextmanager
def _named(address: str) -> Iterator[None]:
    """Turn every error of a disk or a remote store into one whose message names the address.

    Raises:
        MissingFileError: nothing there.
        PermissionError: something that may not be read.
        OSError: what else failed; remote stores raise exceptions of their own for it.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise MissingFileError(f"{address} is not there") from None
    except PermissionError as error:
        raise PermissionError(f"{address} may not be read: {error.strerror or error}") from error
    except OSError as error:
        raise OSError(f"{address} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise OSError(f"{address} cannot be read: {type(error).__name__}: {error}") from error
