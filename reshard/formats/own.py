"""Whatever this tool wrote, in any format: read by the manifest in every shard, not by rules."""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from reshard import roles as roles_files
from reshard.errors import DamagedFileError, InconsistentShardsError, MissingFileError
from reshard.manifest import FILE, KEY, Manifest, chunks, decode
from reshard.model import Model
from reshard.roles import Roles
from reshard.storage import Folder, read
from reshard.tensors import Chunk, Logical, Stored

from .base import Format, Source, SourceFile, shown
from .reading import Contents, contents, model_of

#: Names that only this tool gives, in its own format.
SHARD: Final = re.compile(r"model-rank-\d+-of-\d+(-part-\d+-of-\d+)?\.safetensors")
#: Where our archives keep their dictionary of tensors, by format.
_ROOTS: Final = {"megatron": ("model",)}


def _evidence(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in names if n == FILE)


def read_manifest(folder: Folder) -> Manifest:
    """The account of the whole set.

    Raises:
        MissingFileError: no `reshard.json`, or a shard that it names is not there.
        DamagedFileError: it cannot be read.
    """
    whole = decode(read(folder, FILE), folder.path(FILE))
    there = set(folder.files())
    lost = tuple(f for f in whole.files if f not in there)
    if lost:
        raise MissingFileError(
            f"{folder.path('')} lacks {shown(lost)} of the {len(whole.files)} shards that {FILE} names; "
            "fetch what is missing, or cut the checkpoint again"
        )
    return whole


def _read(folder: Folder, model: Model | None) -> Source:
    model = model_of(folder, model)
    whole = read_manifest(folder)
    files = tuple(_file(folder, name, whole) for name in whole.files)
    ranks = {f.rank for f in files if f.rank is not None}
    if ranks and ranks != set(range(whole.tp_size)):
        raise InconsistentShardsError(
            f"{folder.path('')} has shards of ranks {shown(tuple(map(str, sorted(ranks))))}, "
            f"but is said to be of tp_size={whole.tp_size}"
        )
    return Source(
        format=whole.format,
        folder=folder,
        model=model,
        tensors={n: Logical(dtype=e.dtype, shape=e.shape) for n, e in whole.tensors.items()},
        files=files,
        tp_size=whole.tp_size,
        aliases=dict(whole.ties),
        digests={name: entry.sha256 for name, entry in whole.tensors.items()},
        roles=_roles(folder, whole),
    )


def _roles(folder: Folder, whole: Manifest) -> Roles | None:
    """The roles that the set was cut by.

    Raises:
        MissingFileError: their file is not there.
        InconsistentShardsError: it was changed, or is of another set.
    """
    if whole.roles is None:
        return None
    name = folder.path(roles_files.FILE)
    if roles_files.FILE not in folder.files():
        raise MissingFileError(f"{name} is not there, by which the shards beside it were cut; fetch it")
    roles = roles_files.decode(read(folder, roles_files.FILE), name)
    if roles_files.digest(roles) != whole.roles:
        raise InconsistentShardsError(
            f"{name} is not the file by which the shards beside it were cut: its sha256 is "
            f"{roles_files.digest(roles)}, and {FILE} has {whole.roles}"
        )
    return roles


def _file(folder: Folder, name: str, whole: Manifest) -> SourceFile:
    held = contents(folder, name, _ROOTS.get(whole.format, ()))
    account = own_account(folder, name, held)
    _compare(folder.path(name), account, whole)
    tensors = tuple(_stored(folder.path(name), held.tensors, account))
    return SourceFile(name=name, tensors=tensors, rank=account.tp_rank)


def own_account(folder: Folder, name: str, held: Contents) -> Manifest:
    """The manifest in a shard.

    Raises:
        InconsistentShardsError: it has none.
    """
    raw = held.metadata.get(KEY)
    if raw is None:
        raise InconsistentShardsError(
            f"{folder.path(name)} has no manifest: {FILE} beside it is of another checkpoint"
        )
    return decode(raw, folder.path(name))


def _compare(name: str, shard: Manifest, whole: Manifest) -> None:
    """Shards of another model, or of the same one at another degree, have other accounts."""
    for field in ("origin", "format", "model_type", "tp_size", "files", "roles"):
        mine, theirs = getattr(shard, field), getattr(whole, field)
        if mine != theirs:
            raise InconsistentShardsError(
                f"{name} is of another checkpoint than {FILE}: its {field} is {_short(mine)}, "
                f"there it is {_short(theirs)}"
            )
    for tensor, entry in shard.tensors.items():
        if whole.tensors.get(tensor) != entry:
            raise InconsistentShardsError(
                f"{name} is of another checkpoint than {FILE}: its {tensor} differs"
            )


def _short(value: object) -> str:
    text = str(msgspec.to_builtins(value))
    return text if len(text) <= 120 else text[:117] + "..."


def _stored(name: str, held: dict[str, Stored], account: Manifest) -> Iterable[Stored]:
    if set(held) != set(account.slices):
        odd = tuple(sorted(set(held) ^ set(account.slices)))
        raise DamagedFileError(f"{name} and its manifest disagree about {shown(odd)}")
    for key, entry in account.slices.items():
        stored = held[key]
        parts = chunks(entry)
        shape = stored.shape
        strides = stored.strides or stored.element_strides()
        if entry.transposed and len(shape) > 1:
            shape = (*shape[:-2], shape[-1], shape[-2])
            strides = (*strides[:-2], strides[-1], strides[-2])
        for chunk in parts:
            logical = account.tensors.get(chunk.tensor)
            if logical is None or logical.dtype != stored.dtype or not _fits(chunk, logical.shape, shape):
                raise DamagedFileError(f"{name}: the manifest's account of {key} does not fit the tensor")
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
    name="own",
    summary="what this tool wrote, whatever its format",
    evidence=_evidence,
    read=_read,
)
