"""Carries out a job so that it can be killed at any moment: staged beside the output, journalled, renamed."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from .containers import fill_in, reserve
from .errors import DiskSpaceError, OutputExistsError
from .job import Job, Request, digests_of, open_source, plan_job, write_texts
from .journal import Journal
from .manifest import FILE
from .stream import Budget, Cast, Digests, Files, Stream, fit_budget

#: A batch is made durable and journalled after so much time, or so many bytes.
_BATCH_S: Final = 5.0
_BATCH_BYTES: Final = 1 << 30
#: What threads, hashes and the interpreter take beside the buffers.
_SLACK_BYTES: Final = 24 << 20
#: Inside the staging folder: what is being filled, and what a plan has just laid out.
_TREE: Final = "tree"
_FRESH: Final = "fresh"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did.

    Attributes:
        output: the finished folder.
        files: shards written.
        tensors: logical tensors.
        resumed: how many of them an interrupted run had done before.
        read_bytes: read in this run.
        written_bytes: of all shards.
        elapsed_s: of this run.
        sha256: the source's digest.
        overflows: tensors in which the cast made a finite number infinite.
        notes: what the runtimes will and won't take, and what was left aside.
    """

    output: Path
    files: int
    tensors: int
    resumed: int
    read_bytes: int
    written_bytes: int
    elapsed_s: float
    sha256: str
    overflows: tuple[str, ...]
    notes: tuple[str, ...]


def reshard(
    request: Request,
    *,
    progress: Callable[[int], None] = lambda _: None,
    started: Callable[[Job], None] = lambda _: None,
) -> Report:
    """Cut, merge or re-cut a checkpoint.

    Args:
        request: what is asked for.
        progress: told of bytes read, from any thread.
        started: told of the plan before the first byte is moved.

    Raises:
        CheckpointError: the source, or the request, makes no sense; nothing is left behind.
        DiskSpaceError: the disk is full; what was done before is kept, and the same request continues.
    """
    begun = time.monotonic()
    output = request.output.absolute()
    stage = staging_of(output)
    if not stage.exists():
        _check_output(output, request.overwrite)
    with _locked(stage), _swept(stage):
        source = open_source(request.source, request.config)
        try:
            job = plan_job(request, source, stage / _FRESH)
            journal = Journal(stage)
            found = journal.done(job.fingerprint)
            if found is None or not (journal.is_finished() and output.exists()):
                _check_output(output, request.overwrite)
                found = _adopt(job, stage, journal, found)
            resumed = set(found)
            started(job)
            count = _fill(job, request, stage, journal, found, progress)
        finally:
            source.folder.close()
        if (stage / _TREE).exists():
            _finish(job, found, stage, journal)
            _publish(stage, output)
    shutil.rmtree(stage, ignore_errors=True)
    return Report(
        output=request.output,
        files=len(job.files),
        tensors=len(job.copies),
        resumed=len(resumed),
        read_bytes=count,
        written_bytes=job.size_bytes,
        elapsed_s=time.monotonic() - begun,
        sha256=digests_of(job, found)[-1],
        overflows=tuple(sorted(n for n, d in found.items() if d.overflows)),
        notes=notes_of(job),
    )


def notes_of(job: Job) -> tuple[str, ...]:
    """What the user should know: of the source, then of every set."""
    return tuple(dict.fromkeys((*job.source.notes, *(n for s in job.sets for n in s.layout.notes))))


def staging_of(output: Path) -> Path:
    """Where a run for `output` keeps what is not finished."""
    return output.parent / f".{output.name}.partial"


def make_budget(memory_bytes: int, jobs: int, *, casts: bool) -> tuple[Budget, Cast | None]:
    """Buffers for what the process leaves of `memory_bytes`, and the function that casts.

    Raises:
        MemoryBudgetError: nothing is left.
    """
    function: Cast | None = None
    if casts:
        # Before the process is measured: torch is the largest part of it.
        from . import casting

        function = casting.cast
    return fit_budget(memory_bytes, jobs, anonymous_bytes() + _SLACK_BYTES), function


def anonymous_bytes() -> int:
    """Anonymous memory of this process that is resident now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and next(output.iterdir(), None) is None):
        return
    if not overwrite:
        raise OutputExistsError(f"{output} exists; give another --output, or --overwrite")
    if not any((output / FILE).is_file() for output in (output, *output.glob("tp*"))):
        raise OutputExistsError(f"{output} exists and was not written by this tool; it is not overwritten")


def _adopt(job: Job, stage: Path, journal: Journal, found: dict[str, Digests] | None) -> dict[str, Digests]:
    """Continue with the files of an interrupted run, or begin with fresh ones; what is done already."""
    tree, fresh = stage / _TREE, stage / _FRESH
    if found is not None and all(_has_size(tree / name, f.size_bytes) for name, f in job.files):
        shutil.rmtree(fresh, ignore_errors=True)
        return found
    shutil.rmtree(tree, ignore_errors=True)
    journal.clear()
    free = shutil.disk_usage(stage).free
    if job.size_bytes > free:
        raise DiskSpaceError(
            f"{stage.parent} has {free / 1e9:.2f} GB free; {job.size_bytes / 1e9:.2f} GB would be written"
        )
    fresh.mkdir(exist_ok=True)
    fresh.rename(tree)
    for name, file in job.files:
        reserve(tree / name, file.size_bytes)
    journal.begin(job.fingerprint)
    return {}


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _fill(
    job: Job,
    request: Request,
    stage: Path,
    journal: Journal,
    found: dict[str, Digests],
    progress: Callable[[int], None],
) -> int:
    """Copy what is not done yet, noting in `found` and the journal what is; bytes read."""
    todo = [c for c in job.copies if c.name not in found]
    for copy in job.copies:
        if copy.name in found:
            progress(copy.read_bytes)
    casts = any(c.dtype != c.target_dtype for c in todo)
    budget, cast = make_budget(request.memory_bytes, request.jobs, casts=casts)
    files = Files(str(stage / _TREE))
    batch: list[Digests] = []
    sizes = {c.name: c.written_bytes for c in todo}
    last, size = time.monotonic(), 0
    try:
        stream = Stream(job.source.folder, files.write, budget, cast=cast, progress=progress)
        for digests in stream.run(todo):
            batch.append(digests)
            size += sizes[digests.name]
            if size > _BATCH_BYTES or time.monotonic() - last > _BATCH_S:
                files.sync()
                journal.add(batch)
                found |= {d.name: d for d in batch}
                batch, last, size = [], time.monotonic(), 0
        files.sync()
        journal.add(batch)
        found |= {d.name: d for d in batch}
    finally:
        files.close()
    return sum(c.read_bytes for c in todo)


def _finish(job: Job, found: dict[str, Digests], stage: Path, journal: Journal) -> None:
    digests = digests_of(job, found)
    for one in job.sets:
        for file in one.files:
            fill_in(file, stage / _TREE / one.folder, digests)
    write_texts(job, stage / _TREE, digests)
    for folder in {stage / _TREE / one.folder for one in job.sets} | {stage / _TREE}:
        _sync_folder(folder)
    journal.finish()


def _publish(stage: Path, output: Path) -> None:
    """Give the finished tree its final name; what it replaces goes only once it stands."""
    old = stage / "old"
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
    try:
        (stage / _TREE).rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    _sync_folder(output.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(stage: Path) -> Iterator[None]:
    """One run at a time for one output."""
    stage.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExistsError(f"another run is writing {stage}; wait for it, or stop it") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _swept(stage: Path) -> Iterator[None]:
    """Keep what was done when the disk or the user stopped a run; sweep it up when it makes no sense."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        kept = Journal(stage).has_begun()
        if not kept:
            shutil.rmtree(stage, ignore_errors=True)
        advice = (
            "what was done is kept: run the same command again to continue" if kept else "nothing was written"
        )
        raise DiskSpaceError(f"the disk of {stage.parent} is full ({error.strerror}); {advice}") from error
    except Exception:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        if not Journal(stage).has_begun():
            shutil.rmtree(stage, ignore_errors=True)
        raise
