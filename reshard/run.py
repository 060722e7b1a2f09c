"""Carries out a job so that it may be killed at any moment: staged beside the output, journalled, renamed."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Final

import msgspec

from .budget import Budget, fit_budget
from .encoding import EncodingStream, Transform
from .errors import CheckpointError, DamagedFileError, DiskSpaceError
from .formats.base import Source
from .job import Job, Request, digests_of, open_source, plan_job
from .staging import Stage, check_output, check_place, sync_folder
from .stream import Cast, Digests, Stream, Write
from .target_files import OpenFiles, create, fill_in, renew_head, reserve, write_side_files

#: A batch is made durable and journalled after so much time, or so many bytes.
_BATCH_S: Final = 5.0
_BATCH_BYTES: Final = 1 << 30
#: What threads, hashes and the interpreter take beside the buffers.
_SLACK_BYTES: Final = 24 << 20
#: Buffers when `memory_bytes` is not given: the calling process may hold a model already.
_BESIDE_BYTES: Final = 512 << 20


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
        notes: which loaders take the result, and what was ignored.
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
    transform: Callable[[Source], Transform] | None = None,
) -> Report:
    """Cut, merge or re-cut a checkpoint.

    Args:
        request: what is asked for.
        transform: makes of the opened source what becomes of its tensors; None copies or casts them.
        progress: told of bytes read, from any thread.
        started: told of the plan before the first byte is moved.

    Raises:
        CheckpointError: the source, or the request, makes no sense; nothing is left behind. What an
            interrupted run had done stays when it is the request.
        DiskSpaceError: the disk is full; what was done before is kept, and the same request continues.
    """
    begun = time.monotonic()
    stage = Stage(Path(os.path.abspath(request.output)))
    check_place(stage.output, request.source)
    with stage.locked(), ExitStack() as opened:
        with stage.planning():
            if not stage.is_published:
                check_output(stage.output, overwrite=request.overwrite)
            source = open_source(request.source, request.config)
            opened.callback(source.folder.close)
            made = None if transform is None else transform(source)
            job = plan_job(request, source, made)
            stamps = _stamps(job)
            casts = any(c.dtype != c.target_dtype for c in job.copies)
            budget, cast = make_budget(request.memory_bytes, request.jobs, casts=casts)
            done = _begin(job, request, stage)
        resumed = len(done)
        started(job)
        with stage.copying():
            stream = _stream_of(job, budget, cast, made, progress)
            count = _fill(job, stage, stream, done, progress)
            if stage.tree.exists():
                _check_stamps(job, stamps)
                _finish(job, done, stage)
                stage.publish()
        stage.remove()
    return Report(
        output=request.output,
        files=len(job.files),
        tensors=len(job.copies),
        resumed=resumed,
        read_bytes=count,
        written_bytes=job.size_bytes,
        elapsed_s=time.monotonic() - begun,
        sha256=digests_of(job, done)[-1],
        overflows=tuple(sorted(n for n, d in done.items() if d.overflows)),
        notes=notes_of(job),
    )


def notes_of(job: Job) -> tuple[str, ...]:
    """What the user should know: of the source, then of every set."""
    written = {chunk.tensor for _, f in job.files for t in f.tensors for chunk in t.chunks}
    missing = [name for name in job.tensors if name not in written]
    left = (
        (f"{len(missing)} buffers, such as {missing[0]}, have no place in the format and are left out",)
        if missing
        else ()
    )
    notes = (*job.source.notes, *left, *(n for s in job.sets for n in s.layout.notes))
    return tuple(dict.fromkeys(notes))


def make_budget(memory_bytes: int | None, jobs: int, *, casts: bool) -> tuple[Budget, Cast | None]:
    """Buffers for what the process leaves of `memory_bytes`, and the function that casts.

    Args:
        memory_bytes: anonymous memory of the whole process; None: 512 MiB beside what it already has.
        jobs: threads.
        casts: whether dtypes change on the way.

    Raises:
        MemoryBudgetError: nothing is left.
    """
    function: Cast | None = None
    if casts:
        # Before the process is measured: torch is the largest part of it.
        from . import casting

        function = casting.cast
    used = anonymous_bytes() + _SLACK_BYTES
    return fit_budget(used + _BESIDE_BYTES if memory_bytes is None else memory_bytes, jobs, used), function


def anonymous_bytes() -> int:
    """Anonymous memory of this process that is resident now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _begin(job: Job, request: Request, stage: Stage) -> dict[str, Digests]:
    """Continue with the files of an interrupted run, or begin with fresh ones; what is done already."""
    done = stage.journal.done(job.fingerprint)
    if done is not None and stage.is_published:
        return done
    check_output(stage.output, overwrite=request.overwrite)
    if done is not None and all(_has_size(stage.tree / name, f.size_bytes) for name, f in job.files):
        for name, file in job.files:
            renew_head(file, stage.tree / name)
        return done
    stage.fresh.mkdir()
    for name, file in job.files:
        create(file, stage.fresh / name)
    _check_room(job, stage)
    stage.journal.clear()
    shutil.rmtree(stage.tree, ignore_errors=True)
    stage.fresh.rename(stage.tree)
    for name, file in job.files:
        reserve(stage.tree / name, file.size_bytes)
    _sync_folders(job, stage)
    stage.journal.begin(job.fingerprint)
    sync_folder(stage.folder)
    return {}


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _check_room(job: Job, stage: Stage) -> None:
    """Files of an interrupted run, which will be deleted, count as free; so do headers that are written."""
    used = sum(p.lstat().st_blocks * 512 for p in stage.folder.rglob("*"))
    free = shutil.disk_usage(stage.folder).free + used
    if job.size_bytes > free:
        raise DiskSpaceError(
            f"{stage.output.parent} has {_megabytes(free)} free, but {_megabytes(job.size_bytes)} would be "
            "written; make room, or give an `output` on another disk"
        )


def _megabytes(count_bytes: int) -> str:
    return f"{count_bytes / 1e9:.2f} GB" if count_bytes >= 1e9 else f"{count_bytes / 1e6:.2f} MB"


def _stamps(job: Job) -> dict[str, str]:
    return {f.name: job.source.folder.stamp(f.name) for f in job.source.files}


def _check_stamps(job: Job, before: dict[str, str]) -> None:
    changed = [name for name, stamp in _stamps(job).items() if stamp != before[name]]
    if changed:
        raise DamagedFileError(
            f"{job.source.folder.path(changed[0])} was changed while it was read; run again when it is whole"
        )


def _stream_of(
    job: Job,
    budget: Budget,
    cast: Cast | None,
    transform: Transform | None,
    progress: Callable[[int], None],
) -> Callable[[Write], Stream]:
    """A maker of the stream that the job needs."""

    def make(write: Write) -> Stream:
        folder = job.source.folder
        if transform is None:
            return Stream(folder, write, budget, cast=cast, progress=progress)
        return EncodingStream(folder, write, budget, cast=cast, progress=progress, encoder=transform.encoder)

    return make


def _fill(
    job: Job,
    stage: Stage,
    stream_of: Callable[[Write], Stream],
    done: dict[str, Digests],
    progress: Callable[[int], None],
) -> int:
    """Copy what is not done yet, noting in `done` and the journal what is; bytes read."""
    todo = [c for c in job.copies if c.name not in done]
    for copy in job.copies:
        if copy.name in done:
            progress(copy.read_bytes)
    files = OpenFiles(str(stage.tree))
    batch: list[Digests] = []

    def note() -> None:
        # Taken first: what could not be made durable must not be noted by a second attempt.
        taken = batch.copy()
        batch.clear()
        files.sync()
        stage.journal.add(taken)
        done.update({d.name: d for d in taken})

    sizes = {c.name: c.written_bytes for c in todo}
    last, size = time.monotonic(), 0
    stream = stream_of(files.write)
    try:
        # Closed before the files are: no thread may be left that writes.
        with closing(stream.run(todo)) as finished:
            for digests in finished:
                batch.append(digests)
                size += sizes[digests.name]
                if size > _BATCH_BYTES or time.monotonic() - last > _BATCH_S:
                    note()
                    last, size = time.monotonic(), 0
        note()
    except CheckpointError:
        raise
    except BaseException:
        # Tensors that are complete are noted, so that the next run does not copy them again.
        with suppress(OSError):
            note()
        raise
    finally:
        files.close()
    return sum(c.read_bytes for c in todo)


def _finish(job: Job, done: dict[str, Digests], stage: Stage) -> None:
    digests = digests_of(job, done)
    for shards in job.sets:
        for file in shards.files:
            fill_in(file, stage.tree / shards.folder / file.file.name, digests)
    write_side_files(job.side_files, stage.tree, digests)
    _sync_folders(job, stage)
    stage.journal.finish()


def _sync_folders(job: Job, stage: Stage) -> None:
    paths = [stage.tree / name for name, _ in job.files]
    for folder in {parent for p in paths for parent in p.parents if parent.is_relative_to(stage.tree)}:
        sync_folder(folder)
