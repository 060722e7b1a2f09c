"""What a run would do: the byte map, memory, disk, and which loaders take the result. Writes nothing."""

from pathlib import Path

import msgspec

from .compatibility import Answer, ask_formats
from .dtypes import dtype
from .formats.registry import roles_for
from .job import Job, Request, open_source, plan_job
from .layout import Box, volume
from .run import anonymous_bytes, make_budget, notes_of
from .tensors import FileRegion


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A region of a file.

    Attributes:
        file: its name; a target's is relative to the output.
        offset_bytes: of its first element.
        size_bytes: of all its elements; they lie one behind the other where `is_contiguous`.
        box: what it is of the logical tensor.
        is_contiguous: whether there are gaps.
    """

    file: str
    offset_bytes: int
    size_bytes: int
    box: Box
    is_contiguous: bool


class TensorMap(msgspec.Struct, frozen=True, kw_only=True):
    """Where one logical tensor comes from and goes to."""

    name: str
    dtype: str
    target_dtype: str
    shape: tuple[int, ...]
    sources: tuple[Span, ...]
    replicas: tuple[Span, ...]
    targets: tuple[Span, ...]


class FileSize(msgspec.Struct, frozen=True, kw_only=True):
    """A file to be written."""

    file: str
    rank: int | None
    tensors: int
    size_bytes: int


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do.

    Attributes:
        source_format: what was found.
        source_tp_size: its degree.
        model_type: its family.
        output: where the files would go.
        files: every shard.
        read_bytes: each byte of the source is read once.
        written_bytes: disk needed; while the run is going, nothing else is.
        peak_memory_bytes: most anonymous memory: the process as it is now, and all buffers full.
        jobs: threads.
        byte_map: every tensor's way.
        loaders: what each format, and so each loader, says to the model at these degrees.
        notes: of the source and of the format that was asked for.
    """

    source_format: str
    source_tp_size: int
    model_type: str
    output: Path
    files: tuple[FileSize, ...]
    read_bytes: int
    written_bytes: int
    peak_memory_bytes: int
    jobs: int
    byte_map: tuple[TensorMap, ...]
    loaders: tuple[Answer, ...]
    notes: tuple[str, ...]


def dry_run(request: Request) -> DryRun:
    """Plan `request` and write nothing.

    Raises:
        CheckpointError: as `reshard.run.reshard`.
    """
    source = open_source(request.source, request.config)
    try:
        job = plan_job(request, source)
        roles = roles_for(request.format, request.roles, source)
    finally:
        source.folder.close()
    casts = any(c.dtype != c.target_dtype for c in job.copies)
    budget, _ = make_budget(request.memory_bytes, request.jobs, casts=casts)
    return DryRun(
        source_format=source.format,
        source_tp_size=source.tp_size,
        model_type=source.model.model_type,
        output=request.output,
        files=tuple(
            FileSize(file=name, rank=f.file.rank, tensors=len(f.tensors), size_bytes=f.size_bytes)
            for name, f in job.files
        ),
        read_bytes=job.read_bytes,
        written_bytes=job.size_bytes,
        peak_memory_bytes=anonymous_bytes() + budget.buffer_bytes,
        jobs=budget.jobs,
        byte_map=_map(job),
        loaders=tuple(answer for degree in request.degrees for answer in ask_formats(source, degree, roles)),
        notes=notes_of(job),
    )


def _map(job: Job) -> tuple[TensorMap, ...]:
    return tuple(
        TensorMap(
            name=c.name,
            dtype=c.dtype,
            target_dtype=c.target_dtype,
            shape=c.shape,
            sources=_spans(c.sources, c.dtype),
            replicas=_spans(c.replicas, c.dtype),
            targets=_spans(c.targets, c.target_dtype),
        )
        for c in job.copies
    )


def _spans(regions: tuple[FileRegion, ...], kind: str) -> tuple[Span, ...]:
    return tuple(
        Span(
            file=p.file,
            offset_bytes=p.offset_bytes,
            size_bytes=volume(p.box) * dtype(kind).itemsize_bytes,
            box=p.box,
            is_contiguous=_is_contiguous(p),
        )
        for p in regions
    )


def _is_contiguous(region: FileRegion) -> bool:
    """Whether the region has no gaps, in whatever order of dimensions."""
    step = 1
    for stride, extent in sorted((s, e - b) for s, (b, e) in zip(region.strides, region.box, strict=True)):
        if extent > 1 and stride != step:
            return False
        step *= extent
    return True
