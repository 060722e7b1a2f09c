"""A request planned: what is read, what every file will be, and which regions are copied. Writes nothing."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from .containers import LaidOutFile, lay_out, pending
from .dtypes import dtype
from .encoding import Transform
from .errors import UnsupportedTargetError
from .formats.base import Layout, Options, Source, TargetFile
from .formats.registry import SIDE_FILES, read_source, roles_for, target
from .manifest import FILE, Entry, Manifest, Origin, encode, slices
from .model import Model, parse_model, with_dtype
from .plan import TensorCopy, make_plan
from .roles import FILE as ROLES_FILE
from .roles import Roles
from .storage import Folder, open_folder, read
from .stream import Digests
from .tensors import LogicalTensor

_CONFIG: Final = "config.json"
#: What is copied beside the shards: configuration, tokenizer, a model's own code.
_SMALL: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".md")
_SMALL_BYTES: Final = 64 << 20
_NOT_COPIED: Final = (FILE, ROLES_FILE, *SIDE_FILES)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    Attributes:
        source: a folder or an address.
        output: the folder to write; with several degrees it gets one folder `tpN` for each.
        degrees: the tensor-parallel degrees, each at least 1.
        format: the target's.
        dtype: cast floating tensors to it; None keeps them.
        max_shard_bytes: files are closed before they exceed it.
        config: a `config.json` for a source that has none.
        memory_bytes: anonymous memory of the whole process; None: 512 MiB beside what it already has.
        jobs: threads.
        overwrite: whether a set that this tool wrote at `output` before may be replaced.
        roles: a roles file to cut by; None: those that the source was cut by, or the family's table.
    """

    source: str
    output: Path
    degrees: tuple[int, ...]
    format: str = "safetensors"
    dtype: str | None = None
    max_shard_bytes: int = 5 * 10**9
    config: Path | None = None
    memory_bytes: int | None = None
    jobs: int = 4
    overwrite: bool = False
    roles: Path | None = None

    def __post_init__(self) -> None:
        """Check.

        Raises:
            UnsupportedTargetError: no degree, one below 1, or one given twice.
        """
        if not self.degrees or min(self.degrees) < 1 or len(set(self.degrees)) != len(self.degrees):
            raise UnsupportedTargetError(
                f"`degrees` are different whole numbers from 1 on, not {self.degrees}"
            )


class ShardSet(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one degree.

    Attributes:
        folder: relative to the output; empty for a single degree.
        layout: what is written.
        files: with their tensors' places.
        manifest: of the whole set, its digests pending.
    """

    folder: str
    layout: Layout
    files: tuple[LaidOutFile, ...]
    manifest: Manifest


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request, planned.

    Attributes:
        source: what is read.
        tensors: the logical tensors as they are written: cast, or encoded.
        parents: tensor that is made from another one → that one.
        sets: what is written.
        copies: how one becomes the other.
        side_files: small files → their bytes, digests pending; relative to the output.
        fingerprint: the same for the same source, plan and release.
    """

    source: Source
    tensors: dict[str, LogicalTensor]
    parents: dict[str, str]
    sets: tuple[ShardSet, ...]
    copies: tuple[TensorCopy, ...]
    side_files: dict[str, bytes]
    fingerprint: str

    @property
    def files(self) -> tuple[tuple[str, LaidOutFile], ...]:
        """Every target file with its path relative to the output."""
        return tuple((_join(s.folder, f.file.name), f) for s in self.sets for f in s.files)

    @property
    def read_bytes(self) -> int:
        """Bytes of the source that are read, each of them once."""
        return sum(c.read_bytes for c in self.copies)

    @property
    def size_bytes(self) -> int:
        """Bytes of everything that will be written."""
        return sum(f.size_bytes for _, f in self.files) + sum(map(len, self.side_files.values()))


def open_source(address: str, config: Path | None = None) -> Source:
    """The checkpoint at `address`, with the configuration at `config` when that is given.

    Raises:
        CheckpointError: it cannot be read.
    """
    model: Model | None = None
    if config is not None:
        file = config / _CONFIG if config.is_dir() else config
        model = parse_model(file.read_bytes(), str(file))
    return read_source(open_folder(address), model)


def plan_job(request: Request, source: Source, transform: Transform | None = None) -> Job:
    """Plan `request` and lay out its files, in memory.

    Args:
        request: what is asked for.
        source: what is read.
        transform: what becomes of the tensors, when they are to be encoded.

    Raises:
        CheckpointError: the source cannot be cut as asked.
    """
    if transform is None:
        derived: Mapping[str, tuple[str, ...]] = {}
        given = msgspec.structs.replace(source, tensors=cast_tensors(source, request.dtype))
    else:
        derived, given = transform.derived(), transform.apply(source)
    tensors = given.tensors
    roles = roles_for(request.format, request.roles, source)
    layouts = [_layout(request, given, degree, roles) for degree in request.degrees]
    names = {name: i for i, name in enumerate(tensors)}
    sets = []
    for layout in layouts:
        inside = "" if len(layouts) == 1 else f"tp{layout.tp_size}"
        sets.append(_lay_out(layout, given, source, names, inside))
    placed = [(_join(s.folder, f.file.name), f.file.rank, f.tensors) for s in sets for f in s.files]
    copies = make_plan(source, tensors, placed, derived)
    side_files = _side_files(given, sets, request.dtype)
    return Job(
        source=source,
        tensors=tensors,
        parents={made: name for name, several in derived.items() for made in several},
        sets=tuple(sets),
        copies=copies,
        side_files=side_files,
        fingerprint=_fingerprint(source, copies, side_files, sets),
    )


def cast_tensors(source: Source, wanted: str | None) -> dict[str, LogicalTensor]:
    """The logical tensors with the dtype that was asked for, where that applies.

    Integer tensors keep theirs, and so does everything in a quantized checkpoint: scales have their own.
    """
    if wanted is None:
        return source.tensors
    kind = dtype(wanted)
    if kind.name not in ("float16", "bfloat16", "float32", "float64"):
        raise UnsupportedTargetError(
            f"`dtype` {wanted}: a checkpoint is cast to float16, bfloat16 or float32"
        )
    if source.model.config.get("quantization_config"):
        raise UnsupportedTargetError(
            "`dtype`: the checkpoint is quantized; its scales and weights keep their dtypes"
        )
    floating = ("float16", "bfloat16", "float32", "float64")
    return {
        name: LogicalTensor(dtype=kind.name if t.dtype in floating else t.dtype, shape=t.shape)
        for name, t in source.tensors.items()
    }


def _layout(request: Request, source: Source, degree: int, roles: Roles | None) -> Layout:
    write = target(request.format).write
    assert write is not None
    return write(source, Options(tp_size=degree, max_shard_bytes=request.max_shard_bytes, roles=roles))


def _lay_out(layout: Layout, given: Source, source: Source, names: dict[str, int], inside: str) -> ShardSet:
    held = {c.tensor for f in layout.files for t in f.tensors for c in t.chunks}
    set_manifest = Manifest(
        origin=Origin(name=source.folder.name, format=source.format, sha256=pending(len(names))),
        format=layout.format,
        model_type=source.model.model_type,
        tp_size=layout.tp_size,
        files=tuple(f.name for f in layout.files),
        tensors={
            n: Entry(dtype=t.dtype, shape=t.shape, sha256=pending(names[n]))
            for n, t in given.tensors.items()
            if n in held
        },
        ties={alias: name for alias, name in given.aliases.items() if name in held},
        recipe=given.model.config.get("quantization_config"),
        roles=layout.roles,
    )
    files = tuple(lay_out(f, encode(_shard_manifest(f, set_manifest))) for f in layout.files)
    return ShardSet(folder=inside, layout=layout, files=files, manifest=set_manifest)


def _shard_manifest(file: TargetFile, set_manifest: Manifest) -> Manifest:
    held = {chunk.tensor for tensor in file.tensors for chunk in tensor.chunks}
    return msgspec.structs.replace(
        set_manifest,
        tp_rank=file.rank,
        tensors={name: entry for name, entry in set_manifest.tensors.items() if name in held},
        slices=slices(file.tensors),
    )


def _side_files(source: Source, sets: Iterable[ShardSet], dtype_name: str | None) -> dict[str, bytes]:
    side_files_of_all: dict[str, bytes] = {}
    small = companions(source, dtype_name)
    for shards in sets:
        side_files = {**small, **shards.layout.side_files, FILE: encode(shards.manifest).encode()}
        side_files_of_all |= {_join(shards.folder, name): raw for name, raw in side_files.items()}
    return side_files_of_all


def companions(source: Source, dtype_name: str | None) -> dict[str, bytes]:
    """Configuration, tokenizer and the like, which go with every copy."""
    folder: Folder = source.folder
    config = dict(source.model.config)
    if dtype_name is not None:
        config = with_dtype(config, dtype(dtype_name).name)
    side_files = {_CONFIG: json.dumps(config, indent=2).encode() + b"\n"}
    for name in folder.files():
        is_small = name.endswith(_SMALL) and "/" not in name and folder.size(name) <= _SMALL_BYTES
        if is_small and name not in (_CONFIG, *_NOT_COPIED) and not name.endswith(".index.json"):
            side_files[name] = read(folder, name)
    return side_files


def _fingerprint(
    source: Source, copies: tuple[TensorCopy, ...], side_files: dict[str, bytes], sets: Iterable[ShardSet]
) -> str:
    stamps = [(f.name, source.folder.stamp(f.name)) for f in source.files]
    plan = hashlib.sha256(msgspec.json.encode((stamps, copies)))
    for name in sorted(side_files):
        plan.update(name.encode() + side_files[name])
    # Another release may write other heads.
    whole = hashlib.sha256(plan.hexdigest().encode())
    for shards in sets:
        for laid_out in shards.files:
            whole.update(laid_out.head)
    return whole.hexdigest()


def digests_of(job: Job, done: dict[str, Digests]) -> list[str]:
    """What the pending digests are, in their order: every tensor's, then the source's."""
    made = [
        done[job.parents[name]].derived[name] if name in job.parents else done[name].target
        for name in job.tensors
    ]
    return [*made, origin_digest(job.source, done)]


def origin_digest(source: Source, done: dict[str, Digests]) -> str:
    """SHA-256 over the names, dtypes, shapes and digests of the logical tensors: one model, one digest."""
    lines = sorted((n, t.dtype, t.shape, done[n].source) for n, t in source.tensors.items())
    return hashlib.sha256(msgspec.json.encode(lines)).hexdigest()


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
