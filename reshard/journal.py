"""What an interrupted run has done already: one line for every tensor whose bytes are on the disk."""

import os
from pathlib import Path
from typing import Final

import msgspec

from .stream import Digests

_NAME: Final = "journal"


class _Head(msgspec.Struct, frozen=True):
    plan: str


class _Done(msgspec.Struct, frozen=True):
    finished: bool


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError)
_LINE = msgspec.json.Decoder(Digests)


class Journal:
    """The journal in a staging folder."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self._path = folder / _NAME

    def done(self, plan: str) -> dict[str, Digests] | None:
        """What was done of the plan with this fingerprint; None when there is no journal of it."""
        try:
            lines = self._path.read_bytes().split(b"\n")
            if len(lines) < 2 or msgspec.json.decode(lines[0], type=_Head).plan != plan:
                return None
        except (FileNotFoundError, *_UNREADABLE):
            return None
        entries = {}
        # What follows the last line's end was being written when the run was stopped.
        for line in lines[1:-1]:
            try:
                entry = _LINE.decode(line)
            except _UNREADABLE:
                continue
            entries[entry.name] = entry
        return entries

    def is_finished(self) -> bool:
        """Whether nothing was left to do but the renaming."""
        try:
            lines = self._path.read_bytes().split(b"\n")
            return len(lines) > 1 and msgspec.json.decode(lines[-2], type=_Done).finished
        except (FileNotFoundError, *_UNREADABLE):
            return False

    def has_begun(self) -> bool:
        """Whether there is one, with its first line at least."""
        try:
            return b"\n" in self._path.read_bytes()
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Forget everything."""
        self._path.unlink(missing_ok=True)

    def begin(self, plan: str) -> None:
        """Start over, for the plan with this fingerprint."""
        self.clear()
        self._append(msgspec.json.encode(_Head(plan)) + b"\n")

    def add(self, tensors: list[Digests]) -> None:
        """Note tensors whose bytes are on the disk."""
        if tensors:
            self._append(b"".join(msgspec.json.encode(t) + b"\n" for t in tensors))

    def finish(self) -> None:
        """Note that only the renaming is left."""
        self._append(msgspec.json.encode(_Done(finished=True)) + b"\n")

    def _append(self, raw: bytes) -> None:
        with self._path.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                # A line that was being written when the run was stopped must not swallow the next one.
                raw = raw if stream.read(1) == b"\n" else b"\n" + raw
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
