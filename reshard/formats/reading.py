"""What readers share: the configuration, and the tensors of one file."""

from typing import Final

import msgspec

from reshard.checkpoint import check_name, read_file
from reshard.errors import DamagedFileError, MissingFileError
from reshard.manifest import KEY
from reshard.model import Model, parse_model
from reshard.storage import Folder, read
from reshard.tensors import Chunk, StoredTensor

from .fallback import with_plan

CONFIG: Final = "config.json"
#: Far more than tensors of any model and its optimizer.
_MOST_ENTRIES: Final = 5_000_000
_DEEPEST: Final = 200


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself.

    Attributes:
        tensors: without chunks.
        metadata: of a safetensors file; of an archive, the manifest alone.
        values: entries of an archive that are no tensors.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    values: dict[str, object] = {}


def model_of(folder: Folder, model: Model | None) -> Model:
    """The caller's configuration, or else the folder's.

    Raises:
        MissingFileError: neither is there.
    """
    if model is not None:
        return with_plan(model)
    if CONFIG not in folder.files():
        raise MissingFileError(
            f"{folder.path('')} has no {CONFIG}, which says the model's family; give one as `config`"
        )
    return with_plan(parse_model(read(folder, CONFIG), folder.path(CONFIG)))


def contents(folder: Folder, file: str, root: tuple[str, ...] = ()) -> Contents:
    """The tensors of a safetensors file, or of the dictionary at `root` in a PyTorch archive.

    Args:
        folder: where the file is.
        file: its name.
        root: keys that lead to the dictionary of tensors in an archive; none: it is the archive's object.

    Raises:
        DamagedFileError: a file that contradicts its format.
    """
    if file.endswith(".safetensors"):
        specs, metadata = read_file(folder, file)
        stored = {
            name: StoredTensor(
                name=name, dtype=s.dtype, shape=s.shape, chunks=(), offset_bytes=s.offset_bytes
            )
            for name, s in specs.items()
        }
        return Contents(tensors=stored, metadata=metadata)
    return _archive(folder, file, root)


def _archive(folder: Folder, file: str, root: tuple[str, ...]) -> Contents:
    # Only archives need torch, which takes a second and 150 MB.
    import torch

    from reshard.pickles import ATTRIBUTE, place, read_archive

    value = outer = read_archive(folder, file)
    label, size = folder.path(file), folder.size(file)
    for key in root:
        if not isinstance(value, dict) or key not in value:
            raise DamagedFileError(f"{label} has no {key!r}")
        value = value[key]
    if not isinstance(value, dict):
        kind = type(value).__name__.removeprefix("Fake")
        raise DamagedFileError(f"{label} holds a {kind}, not tensors by name")
    tensors = {}
    try:
        entries = flat(value)
    except RecursionError:
        raise DamagedFileError(f"{label} holds a dictionary that holds itself") from None
    for name, tensor in entries:
        if not isinstance(tensor, torch.Tensor):
            continue
        check_name(name, label)
        if name in tensors:
            raise DamagedFileError(f"{label} has two tensors that are both {name}")
        at = place(tensor, size, label)
        tensors[name] = StoredTensor(
            name=name,
            dtype=at.dtype,
            shape=at.shape,
            chunks=(),
            offset_bytes=at.offset_bytes,
            strides=at.strides,
        )
    manifest = getattr(value, ATTRIBUTE, None)
    values = {k: v for k, v in outer.items() if not isinstance(v, torch.Tensor)} if root else {}
    return Contents(
        tensors=tensors, metadata={KEY: manifest} if isinstance(manifest, str) else {}, values=values
    )


def flat(value: dict[str, object]) -> list[tuple[str, object]]:
    """Entries of nested dictionaries and lists, their keys and places joined with dots.

    Raises:
        RecursionError: containers that hold themselves.
        DamagedFileError: more entries than a checkpoint has, as where containers hold each other many times.
    """
    flattened: list[tuple[str, object]] = []
    # Last in, first out: what is nested comes where it stands.
    todo = [(str(key), entry, 0) for key, entry in reversed(list(value.items()))]
    while todo:
        name, entry, depth = todo.pop()
        if isinstance(entry, list):
            entry = dict(enumerate(entry))
        if not isinstance(entry, dict):
            flattened.append((name, entry))
            continue
        if depth > _DEEPEST:
            raise RecursionError
        todo += [(f"{name}.{key}", inner, depth + 1) for key, inner in reversed(list(entry.items()))]
        if len(flattened) + len(todo) > _MOST_ENTRIES:
            raise DamagedFileError(f"an archive with more than {_MOST_ENTRIES} entries is no checkpoint")
    return flattened


def merged(stored: StoredTensor) -> StoredTensor:
    """The stored tensor as all of the logical one with its name."""
    box = tuple((0, extent) for extent in stored.shape)
    chunk = Chunk(tensor=stored.name, box=box, at=(0,) * len(stored.shape))
    return msgspec.structs.replace(stored, chunks=(chunk,))
