"""Proves a set of shards: every byte hashed, replicas compared, and, against its source, the round trip."""

from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from .errors import InconsistentShardsError, UnsupportedSourceError
from .formats import manifest_format
from .formats.base import Options, Source
from .formats.registry import target
from .job import open_source
from .manifest import Manifest, Slice, slices
from .messages import shown
from .padding import check_zero, gaps
from .plan import TensorCopy, make_plan
from .run import make_budget
from .stream import Digests, Stream
from .tensors import LogicalTensor


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was proved.

    Attributes:
        format: of the set.
        tp_size: its degree.
        files: shards read.
        tensors: logical tensors hashed.
        read_bytes: every byte of every shard's tensors.
        origin_sha256: the digest of the checkpoint that was cut.
        against: the checkpoint compared with; None when there was none.
    """

    format: str
    tp_size: int
    files: int
    tensors: int
    read_bytes: int
    origin_sha256: str
    against: str | None = None


def verify(
    folder: str,
    against: str | None = None,
    *,
    memory_bytes: int | None = None,
    jobs: int = 4,
    progress: Callable[[int], None] = lambda _: None,
    started: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Read the set in `folder` and compare every logical tensor with its manifest, and with `against`.

    Args:
        folder: what this tool wrote.
        against: the checkpoint that it was cut from, of any format and degree.
        memory_bytes: anonymous memory of the whole process; None: 512 MiB beside what it already has.
        jobs: threads.
        progress: told of bytes read.
        started: told how many there are.

    Raises:
        UnsupportedSourceError: the folder has no manifest.
        DamagedFileError: bytes were changed since they were written.
        InconsistentShardsError: shards contradict each other, or the checkpoint they are compared with.
    """
    with ExitStack() as opened:
        source = open_source(folder)
        opened.callback(source.folder.close)
        set_manifest = _manifest(source)
        copies = make_plan(source, source.tensors, ())
        others: tuple[TensorCopy, ...] = ()
        if against is not None:
            other = open_source(against)
            opened.callback(other.folder.close)
            others = make_plan(other, _comparable(source, set_manifest, other), ())
        padding = list(gaps(source))
        padded_bytes = sum(gap.size_bytes for gap in padding)
        started(sum(c.read_bytes for c in (*copies, *others)) + padded_bytes)
        digests = _digests(source, copies, memory_bytes, jobs, progress)
        for gap in padding:
            check_zero(source.folder, gap)
            progress(gap.size_bytes)
        if against is not None:
            expected = _digests(other, others, memory_bytes, jobs, progress)
            _compare(digests, expected, folder, against)
    return Verified(
        format=source.format,
        tp_size=source.tp_size,
        files=len(source.files),
        tensors=len(copies),
        read_bytes=sum(c.read_bytes for c in copies) + padded_bytes,
        origin_sha256=set_manifest.origin.sha256,
        against=against,
    )


def _compare(actual: dict[str, Digests], expected: dict[str, Digests], folder: str, against: str) -> None:
    for name, tensor_digests in actual.items():
        if tensor_digests.source != expected[name].target:
            raise InconsistentShardsError(f"{name} has other values in {folder} than in {against}")


def _manifest(source: Source) -> Manifest:
    if not source.digests:
        raise UnsupportedSourceError(
            f"{source.folder.path('')} has no manifest to verify it by; only what this tool "
            "wrote can be verified"
        )
    return manifest_format.read_manifest(source.folder)


def _comparable(source: Source, set_manifest: Manifest, other: Source) -> dict[str, LogicalTensor]:
    """The other checkpoint's tensors with the set's dtypes, once both have the same tensors and cut.

    Raises:
        InconsistentShardsError: they have not.
    """
    here, there = source.folder.path(""), other.folder.path("")
    missing = tuple(sorted(set(source.tensors) - set(other.tensors)))
    if missing:
        raise InconsistentShardsError(
            f"{here} and {there} are of different models: {there} has no {shown(missing)}"
        )
    for name, tensor in source.tensors.items():
        if tensor.shape != other.tensors[name].shape:
            raise InconsistentShardsError(
                f"{name} is {list(tensor.shape)} in {here} and {list(other.tensors[name].shape)} in {there}"
            )
    _same_cut(source, set_manifest, other)
    return {**other.tensors, **source.tensors}


def _same_cut(source: Source, set_manifest: Manifest, other: Source) -> None:
    """Lay the other checkpoint out again: the manifests in the shards must describe the same."""
    write = target(set_manifest.format).write
    assert write is not None
    given = msgspec.structs.replace(other, tensors={**other.tensors, **source.tensors})
    layout = write(given, Options(tp_size=set_manifest.tp_size, roles=source.roles))
    expected: dict[int | None, dict[str, Slice]] = {}
    for file in layout.files:
        expected.setdefault(file.rank, {}).update(slices(file.tensors))
    actual: dict[int | None, dict[str, Slice]] = {}
    for read in source.files:
        actual.setdefault(read.rank, {}).update(slices(read.tensors))
    for rank in sorted(set(expected) | set(actual), key=str):
        if expected.get(rank) != actual.get(rank):
            raise InconsistentShardsError(
                f"rank {rank}'s shard is not cut as {set_manifest.format} at "
                f"tp_size={set_manifest.tp_size} is today; cut the checkpoint again"
            )


def _digests(
    source: Source,
    copies: tuple[TensorCopy, ...],
    memory_bytes: int | None,
    jobs: int,
    progress: Callable[[int], None],
) -> dict[str, Digests]:
    casts = any(c.dtype != c.target_dtype for c in copies)
    budget, cast = make_budget(memory_bytes, jobs, casts=casts)

    def refuse(file: str, offset: int, data: memoryview) -> None:
        raise AssertionError(
            f"verification writes nothing, but would write {len(data)} bytes to {file}:{offset}"
        )

    stream = Stream(source.folder, refuse, budget, cast=cast, progress=progress)
    return {d.name: d for d in stream.run(copies)}
