"""The manifest: which checkpoint, degree and rank a shard is of, and what it holds. Pure.

It stands in each file (`__metadata__["reshard"]` of safetensors, attribute `_reshard` of the dictionary in a
PyTorch archive) and, without the slices, beside them as `reshard.json`.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from .errors import DamagedFileError
from .layout import volume
from .tensors import Chunk, StoredTensor

FILE: Final = "reshard.json"
#: Key in a safetensors file's metadata.
KEY: Final = "reshard"
_VERSION: Final = 1


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the tensors came from.

    Attributes:
        name: the folder's.
        format: in which form.
        sha256: over every logical tensor's name, dtype, shape and digest, in the source's own dtypes.
    """

    name: str
    format: str
    sha256: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A logical tensor: what it is when everything is merged.

    Attributes:
        dtype: torch's name.
        shape: its dimensions.
        sha256: of its bytes, row-major, little-endian: the same at every degree and in every format.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str


class Slice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored tensor as boxes of logical ones.

    Attributes:
        chunks: tensor, box and where the box begins in the stored tensor.
        swapped: numbers of the chunks whose two dimensions are the other way round in the stored tensor.
        transposed: whether the file has the last two dimensions swapped.
        padding: elements that no chunk covers; they are zero and belong to no logical tensor.
    """

    chunks: tuple[tuple[str, tuple[tuple[int, int], ...], tuple[int, ...]], ...]
    swapped: tuple[int, ...] = ()
    transposed: bool = False
    padding: int = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one file holds of which checkpoint, or what the whole set holds.

    Attributes:
        format_version: of the manifest.
        origin: what was cut.
        format: the files' format.
        model_type: the configuration's.
        tp_size: how many ranks the set is for.
        tp_rank: whose file it is; None for a file of all ranks and for `reshard.json`.
        files: every file of the set, by rank; one that is missing is missed.
        tensors: the logical tensors that the set merges to; in a shard, those that it has a part of.
        slices: the stored tensors of this file; empty in `reshard.json`.
        ties: name → name of the logical tensor that it is the same as.
        recipe: the configuration's `quantization_config`, when there is one.
        roles: digest of the roles that the set was cut by; None when it was cut by the family's table.
    """

    format_version: int = _VERSION
    origin: Origin
    format: str
    model_type: str
    tp_size: int
    tp_rank: int | None = None
    files: tuple[str, ...]
    tensors: dict[str, Entry]
    slices: dict[str, Slice] = {}
    ties: dict[str, str] = {}
    recipe: dict[str, Any] | None = None
    roles: str | None = None


def encode(manifest: Manifest) -> str:
    """The manifest as JSON."""
    return msgspec.json.encode(manifest).decode()


def decode(raw: str | bytes, label: str) -> Manifest:
    """The manifest in `raw`; `label` names the file in messages.

    Raises:
        DamagedFileError: no manifest, or one of a later format.
    """
    try:
        version = msgspec.json.decode(raw, type=_ManifestVersion).format_version
        if version != _VERSION:
            raise DamagedFileError(
                f"{label} has a manifest of format {version}; this release reads {_VERSION}; update it"
            )
        return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise DamagedFileError(f"{label} has a damaged manifest: {error}") from error


class _ManifestVersion(msgspec.Struct):
    format_version: int = _VERSION


def slices(tensors: Iterable[StoredTensor]) -> dict[str, Slice]:
    """Stored tensors as the manifest of their file describes them."""
    return {
        t.name: Slice(
            chunks=tuple((c.tensor, c.box, c.at) for c in t.chunks),
            swapped=tuple(i for i, c in enumerate(t.chunks) if c.is_swapped),
            transposed=t.transposed,
            padding=_padding(t),
        )
        for t in tensors
    }


def chunks(entry: Slice) -> tuple[Chunk, ...]:
    """The chunks that a manifest gives for one stored tensor."""
    return tuple(
        Chunk(tensor=name, box=box, at=at, is_swapped=number in entry.swapped)
        for number, (name, box, at) in enumerate(entry.chunks)
    )


def _padding(stored: StoredTensor) -> int:
    elements = 1
    for extent in stored.shape:
        elements *= extent
    return elements - sum(volume(chunk.box) for chunk in stored.chunks)
