"""Reads what this tool wrote, in any format, by the manifest in every shard and not by rules."""

from collections.abc import Iterable
from typing import Final

import msgspec

from reshard import roles as roles_files
from reshard.errors import DamagedFileError, InconsistentShardsError, MissingFileError
from reshard.manifest import FILE, KEY, Manifest, chunks, decode
from reshard.messages import shown
from reshard.model import Model
from reshard.roles import Roles
from reshard.storage import Folder, read
from reshard.tensors import Chunk, LogicalTensor, StoredTensor

from .base import Format, Source, SourceFile
from .reading import Contents, contents, model_of

#: Format → keys of the dictionary of tensors in its archives.
_ROOTS: Final = {"megatron": ("model",)}


def _evidence(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in names if n == FILE)


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of the whole set.

    Raises:
        MissingFileError: no `reshard.json`, or a shard that it names is not there.
        DamagedFileError: it cannot be read.
    """
    set_manifest = decode(read(folder, FILE), folder.path(FILE))
    there = set(folder.files())
    absent = tuple(f for f in set_manifest.files if f not in there)
    if absent:
        raise MissingFileError(
            f"{folder.path('')} lacks {shown(absent)} of the {len(set_manifest.files)} shards that {FILE} "
            "names; fetch what is missing, or cut the checkpoint again"
        )
    return set_manifest


def _read(folder: Folder, model: Model | None) -> Source:
    model = model_of(folder, model)
    set_manifest = read_manifest(folder)
    files = tuple(_file(folder, name, set_manifest) for name in set_manifest.files)
    ranks = {f.rank for f in files if f.rank is not None}
    if ranks and ranks != set(range(set_manifest.tp_size)):
        raise InconsistentShardsError(
            f"{folder.path('')} has shards of ranks {shown(tuple(map(str, sorted(ranks))))}, "
            f"but is said to be of tp_size={set_manifest.tp_size}"
        )
    return Source(
        format=set_manifest.format,
        folder=folder,
        model=model,
        tensors={n: LogicalTensor(dtype=e.dtype, shape=e.shape) for n, e in set_manifest.tensors.items()},
        files=files,
        tp_size=set_manifest.tp_size,
        aliases=dict(set_manifest.ties),
        digests={name: entry.sha256 for name, entry in set_manifest.tensors.items()},
        roles=_roles(folder, set_manifest),
    )


def _roles(folder: Folder, set_manifest: Manifest) -> Roles | None:
    """The roles that the set was cut by.

    Raises:
        MissingFileError: their file is not there.
        InconsistentShardsError: it was changed, or is of another set.
    """
    if set_manifest.roles is None:
        return None
    name = folder.path(roles_files.FILE)
    if roles_files.FILE not in folder.files():
        raise MissingFileError(f"{name} is not there, by which the shards beside it were cut; fetch it")
    roles = roles_files.decode(read(folder, roles_files.FILE), name)
    if roles_files.digest(roles) != set_manifest.roles:
        raise InconsistentShardsError(
            f"{name} is not the file by which the shards beside it were cut: its sha256 is "
            f"{roles_files.digest(roles)}, and {FILE} has {set_manifest.roles}"
        )
    return roles


def _file(folder: Folder, name: str, set_manifest: Manifest) -> SourceFile:
    held = contents(folder, name, _ROOTS.get(set_manifest.format, ()))
    shard_manifest = read_shard_manifest(folder, name, held)
    _compare(folder.path(name), shard_manifest, set_manifest)
    tensors = tuple(_stored(folder.path(name), held.tensors, shard_manifest))
    return SourceFile(name=name, tensors=tensors, rank=shard_manifest.tp_rank)


def read_shard_manifest(folder: Folder, name: str, held: Contents) -> Manifest:
    """The manifest in a shard.

    Args:
        folder: where the shard is.
        name: the shard's file.
        held: what the file was seen to hold.

    Raises:
        InconsistentShardsError: it has none.
    """
    raw = held.metadata.get(KEY)
    if raw is None:
        raise InconsistentShardsError(
            f"{folder.path(name)} has no manifest: {FILE} beside it is of another checkpoint"
        )
    return decode(raw, folder.path(name))


def _compare(name: str, shard_manifest: Manifest, set_manifest: Manifest) -> None:
    """Shards of another model, or of the same one at another degree, have other manifests."""
    for field in ("origin", "format", "model_type", "tp_size", "files", "roles"):
        mine, theirs = getattr(shard_manifest, field), getattr(set_manifest, field)
        if mine != theirs:
            raise InconsistentShardsError(
                f"{name} is of another checkpoint than {FILE}: its {field} is {_short(mine)}, "
                f"there it is {_short(theirs)}"
            )
    for tensor, entry in shard_manifest.tensors.items():
        if set_manifest.tensors.get(tensor) != entry:
            raise InconsistentShardsError(
                f"{name} is of another checkpoint than {FILE}: its {tensor} differs"
            )


def _short(value: object) -> str:
    text = str(msgspec.to_builtins(value))
    return text if len(text) <= 120 else text[:117] + "..."


def _stored(name: str, held: dict[str, StoredTensor], shard_manifest: Manifest) -> Iterable[StoredTensor]:
    if set(held) != set(shard_manifest.slices):
        unmatched = tuple(sorted(set(held) ^ set(shard_manifest.slices)))
        raise DamagedFileError(f"{name} and its manifest disagree about {shown(unmatched)}")
    for key, entry in shard_manifest.slices.items():
        stored = held[key]
        parts = chunks(entry)
        shape = stored.shape
        strides = stored.strides or stored.element_strides()
        if entry.transposed and len(shape) > 1:
            shape = (*shape[:-2], shape[-1], shape[-2])
            strides = (*strides[:-2], strides[-1], strides[-2])
        for chunk in parts:
            logical = shard_manifest.tensors.get(chunk.tensor)
            if logical is None or logical.dtype != stored.dtype or not _fits(chunk, logical.shape, shape):
                raise DamagedFileError(f"{name}: the manifest's description of {key} does not fit the tensor")
        yield msgspec.structs.replace(
            stored, shape=shape, strides=strides, transposed=entry.transposed, chunks=parts
        )


def _fits(chunk: Chunk, logical: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """Whether the box lies in the logical tensor, and where it is put in the stored one."""
    if len(chunk.box) != len(logical) or len(chunk.at) != len(stored) or len(logical) > len(stored):
        return False
    if chunk.is_swapped and len(logical) != 2:
        return False
    inside = all(0 <= begin <= end <= extent for (begin, end), extent in zip(chunk.box, logical, strict=True))
    extents = [end - begin for begin, end in chunk.box]
    extents = [1] * (len(stored) - len(logical)) + (extents[::-1] if chunk.is_swapped else extents)
    places = zip(chunk.at, extents, stored, strict=True)
    return inside and all(0 <= at <= size - extent for at, extent, size in places)


FORMAT: Final = Format(
    name="manifest",
    evidence=_evidence,
    read=_read,
)
