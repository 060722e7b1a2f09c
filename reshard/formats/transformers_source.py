"""Reads transformers' distributed shards: every tensor of a file says where its box begins."""

import msgspec

from reshard.errors import DamagedFileError, InconsistentShardsError
from reshard.messages import shown
from reshard.model import Model
from reshard.rules import Rules
from reshard.storage import Folder
from reshard.tensors import Chunk, LogicalTensor

from .base import Source, SourceFile
from .reading import contents, model_of
from .transformers_names import OFFSETS_KEY, evidence, rank_of


def read_transformers(folder: Folder, model: Model | None) -> Source:
    """Names stay those of the running model, which transformers loads as well."""
    model = model_of(folder, model)
    boxes: dict[str, list[tuple[int, ...]]] = {}
    kinds: dict[str, str] = {}
    held = []
    for file in evidence(folder.files()):
        held_by_file = contents(folder, file)
        offsets = _offsets(held_by_file.metadata, folder.path(file))
        tensors = []
        for name, stored in held_by_file.tensors.items():
            at = offsets.get(name)
            if at is None or len(at) != len(stored.shape):
                raise DamagedFileError(f"{folder.path(file)} does not say where {name} begins")
            ends = tuple(a + n for a, n in zip(at, stored.shape, strict=True))
            boxes.setdefault(name, []).append(ends)
            kinds.setdefault(name, stored.dtype)
            box = tuple(zip(at, ends, strict=True))
            chunk = Chunk(tensor=name, box=box, at=(0,) * len(box))
            tensors.append(msgspec.structs.replace(stored, chunks=(chunk,)))
        held.append(SourceFile(name=file, tensors=tuple(tensors), rank=rank_of(file)))
    ranks = [f.rank for f in held]
    if ranks != list(range(len(held))):
        raise DamagedFileError(f"{folder.path('')} lacks shards: it has {shown(tuple(f.name for f in held))}")
    shapes = {name: tuple(map(max, zip(*ends, strict=True))) for name, ends in boxes.items()}
    logical = {name: LogicalTensor(dtype=kinds[name], shape=shape) for name, shape in shapes.items()}
    _check_whole(folder, model, logical)
    return Source(
        format="transformers",
        folder=folder,
        model=model,
        tensors=logical,
        files=tuple(held),
        tp_size=len(held),
    )


def _check_whole(folder: Folder, model: Model, tensors: dict[str, LogicalTensor]) -> None:
    """The files do not say how many there are: without the last one, every tensor would only seem smaller."""
    rules = Rules(model, tensors)
    for name, tensor in tensors.items():
        try:
            rule = rules.rule(name)
        except DamagedFileError as error:
            raise InconsistentShardsError(f"{folder.path('')} lacks its last shards: {error}") from None
        if rule.role == "embedding" and tensor.shape[0] < rules.geometry.vocab:
            raise InconsistentShardsError(
                f"{folder.path('')} lacks its last shards: {name} has {tensor.shape[0]} rows for "
                f"{rules.geometry.vocab} tokens"
            )


def _offsets(metadata: dict[str, str], name: str) -> dict[str, tuple[int, ...]]:
    try:
        entries = msgspec.json.decode(metadata[OFFSETS_KEY], type=dict[str, _Offsets])
    except (KeyError, msgspec.DecodeError, RecursionError) as error:
        raise DamagedFileError(f"{name} has no {OFFSETS_KEY} that can be read: {error}") from error
    if any(at < 0 for entry in entries.values() for at in entry.saved_offsets):
        raise DamagedFileError(f"{name} has a negative offset")
    return {key: entry.saved_offsets for key, entry in entries.items()}


class _Offsets(msgspec.Struct, frozen=True):
    saved_offsets: tuple[int, ...]
