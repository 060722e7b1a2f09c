"""What the headers of transformers' distributed shards say, and whether they make up a model.

Every file gives each of its tensors the offsets of a box in the whole tensor, and nothing else: neither the
whole shape nor the degree. Shards that this tool wrote carry a manifest that has the degree.

Source: torch 2.13 `distributed/checkpoint/_hf_utils.py` and `hf_storage.py`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from ..errors import DamagedFileError, InconsistentShardsError, MissingFileError
from ..formats.transformers_names import FILE_NAME, OFFSETS_KEY
from ..manifest import KEY, Manifest, decode
from ..messages import shown


class SavedBox(msgspec.Struct, frozen=True, kw_only=True):
    """A box of a tensor, as one file holds it.

    Attributes:
        file: the file's name.
        dtype: safetensors' name of it, as in `BF16`.
        offsets: where the box begins in the whole tensor, in elements.
        shape: its extents, in elements.
    """

    file: str
    dtype: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    def overlaps(self, other: "SavedBox") -> bool:
        """Whether any element lies in both boxes."""
        return all(
            max(a, b) < min(a + m, b + n)
            for a, m, b, n in zip(self.offsets, self.shape, other.offsets, other.shape, strict=True)
        )


class SavedShards(msgspec.Struct, frozen=True, kw_only=True):
    """A folder's shards.

    Attributes:
        folder: where they are.
        tp_size: the degree that they were cut for.
        boxes: of every tensor, under the name that the model gives it.
    """

    folder: Path
    tp_size: int
    boxes: dict[str, tuple[SavedBox, ...]]


def read_shards(folder: Path) -> SavedShards:
    """Survey the shards in `folder` from their headers alone.

    Raises:
        MissingFileError: no shards, or one of the set is not there.
        DamagedFileError: a file that contradicts its own header.
        InconsistentShardsError: files that do not belong to one set.
    """
    # Other endings than the loader's own `*.safetensors` do no harm.
    ranks = _check_names(folder, sorted(file.name for file in folder.glob("*.safetensors")))
    boxes: dict[str, list[SavedBox]] = {}
    manifests: dict[str, Manifest | None] = {}
    for name, rank in ranks.items():
        metadata, file_boxes = _read_header(folder / name)
        manifests[name] = _manifest(folder / name, metadata, rank)
        for tensor, box in file_boxes:
            boxes.setdefault(tensor, []).append(box)
    _check_manifests(folder, manifests)
    tp_size = len(set(ranks.values()))
    return SavedShards(folder=folder, tp_size=tp_size, boxes={name: tuple(b) for name, b in boxes.items()})


def check_tensors(
    shards: SavedShards, shapes: Mapping[str, tuple[int, ...]], *, ignored: Iterable[str] = ()
) -> None:
    """Check that the shards make up every tensor of a model, exactly.

    Args:
        shards: what the headers say.
        shapes: of the model's `state_dict`.
        ignored: regular expressions; tensors that one is found in may be there without the model having them.

    Raises:
        InconsistentShardsError: a tensor lacks elements, has some twice, or is not the model's.
    """
    folder = shards.folder
    absent = sorted(set(shapes) - set(shards.boxes))
    if absent:
        raise InconsistentShardsError(
            f"no shard in {folder} holds {shown(absent)}; a shard is missing or of another model, or carries "
            "the names of the plain checkpoint where transformers wants those of its modules"
        )
    known = [re.compile(pattern) for pattern in ignored]
    surplus = sorted(n for n in shards.boxes if n not in shapes and not any(k.search(n) for k in known))
    if surplus:
        raise InconsistentShardsError(
            f"the shards in {folder} hold {shown(surplus)}, which the model of config.json does not have"
        )
    for name, shape in shapes.items():
        _check_tiling(f"{name} in {folder}", shards.boxes[name], shape)


def _check_names(folder: Path, names: list[str]) -> dict[str, int]:
    """Rank of every file, once the set has no gap and nothing else lies beside it."""
    matches = {name: FILE_NAME.fullmatch(name) for name in names}
    numbered = {n: tuple(map(int, match.groups())) for n, match in matches.items() if match is not None}
    if not numbered:
        raise MissingFileError(
            f"{folder} has no shard-00001-model-00001-of-00001.safetensors or another of its kind; "
            "write it with format='transformers'"
        )
    stray = [name for name, match in matches.items() if match is None]
    if stray:
        raise InconsistentShardsError(
            f"{folder} holds {stray[0]} beside the shards, and transformers would read that too; take it away"
        )
    for shard in range(1, max(number for number, _, _ in numbered.values()) + 1):
        parts = {(part, total) for number, part, total in numbered.values() if number == shard}
        total = max((total for _, total in parts), default=1)
        for part in range(1, total + 1):
            if (part, total) not in parts:
                raise MissingFileError(
                    f"{folder} lacks {_file_name(shard, part, total)}; fetch it, or write the whole set again"
                )
    return {name: number - 1 for name, (number, _, _) in numbered.items()}


def _file_name(shard: int, part: int = 1, total: int = 1) -> str:
    return f"shard-{shard:05d}-model-{part:05d}-of-{total:05d}.safetensors"


def _read_header(file: Path) -> tuple[dict[str, str], list[tuple[str, SavedBox]]]:
    """The file's metadata and the boxes in it; no data is read."""
    try:
        with safe_open(file, framework="numpy") as stream:
            metadata = stream.metadata() or {}
            described = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in described.items()}
            dtypes = {name: str(part.get_dtype()) for name, part in described.items()}
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{file} is truncated or damaged: {error}") from error
    offsets = _saved_offsets(file, metadata, shapes)
    return metadata, [
        (name, SavedBox(file=file.name, dtype=dtypes[name], offsets=offsets[name], shape=shape))
        for name, shape in shapes.items()
    ]


def _saved_offsets(
    file: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Where each tensor's box begins."""
    try:
        described = json.loads(metadata[OFFSETS_KEY])
        offsets_by_name = {name: tuple(described[name]["saved_offsets"]) for name in shapes}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{file} does not say in {OFFSETS_KEY} where each of its tensors begins: {error!r}"
        ) from error
    for name, offsets in offsets_by_name.items():
        if len(offsets) != len(shapes[name]) or any(type(at) is not int or at < 0 for at in offsets):
            raise DamagedFileError(f"{file} gives {name} of shape {shapes[name]} the offsets {offsets}")
    return offsets_by_name


def _manifest(file: Path, metadata: Mapping[str, str], rank: int) -> Manifest | None:
    """The file's manifest; None where transformers itself wrote it."""
    if KEY not in metadata:
        return None
    manifest = decode(metadata[KEY], str(file))
    if manifest.tp_rank != rank:
        raise InconsistentShardsError(
            f"{file} is named as rank {rank}'s and says inside that it is rank {manifest.tp_rank}'s; restore "
            "its name"
        )
    return manifest


def _check_manifests(folder: Path, manifests: Mapping[str, Manifest | None]) -> None:
    """Every file tells of the same set, and all of that set is there."""
    identities = {
        name: (m.origin.sha256, m.tp_size, m.files) if m is not None else None
        for name, m in manifests.items()
    }
    first_name = next(iter(manifests))
    other_name = next((name for name in manifests if identities[name] != identities[first_name]), None)
    if other_name is not None:
        raise InconsistentShardsError(
            f"{first_name} in {folder} is {_told(manifests[first_name])}, and {other_name} is "
            f"{_told(manifests[other_name])}; keep the files of one set"
        )
    manifest = manifests[first_name]
    missing = [name for name in (manifest.files if manifest is not None else ()) if name not in manifests]
    if manifest is not None and missing:
        raise MissingFileError(
            f"{folder} was cut for tp_size={manifest.tp_size} and lacks {shown(missing)}; fetch it, or write "
            "the whole set again"
        )


def _told(manifest: Manifest | None) -> str:
    if manifest is None:
        return "without a manifest"
    return f"of {manifest.origin.name} ({manifest.origin.sha256[:12]}) at tp_size={manifest.tp_size}"


def _check_tiling(where: str, boxes: tuple[SavedBox, ...], shape: tuple[int, ...]) -> None:
    """Disjoint boxes inside the tensor that together have its size leave no hole."""
    for box in boxes:
        inside = len(box.shape) == len(shape) and all(
            at + extent <= whole for at, extent, whole in zip(box.offsets, box.shape, shape, strict=True)
        )
        if not inside:
            raise InconsistentShardsError(
                f"{where}: {box.file} holds {list(box.shape)} from {list(box.offsets)} on, which is outside "
                f"the model's {list(shape)}; the shard is of another model"
            )
    if len({box.dtype for box in boxes}) > 1:
        said = ", ".join(f"{box.dtype} in {box.file}" for box in boxes)
        raise InconsistentShardsError(f"{where} has two dtypes: {said}; the shards are of different sets")
    for one, other in combinations(boxes, 2):
        if one.overlaps(other):
            raise InconsistentShardsError(
                f"{where}: {one.file} and {other.file} both hold some of it; the shards are of different sets"
            )
    held, needed = sum(math.prod(box.shape) for box in boxes), math.prod(shape)
    if held != needed:
        raise InconsistentShardsError(
            f"{where}: the shards hold {held} of its {needed} elements; one of them is missing"
        )
