"""The files of one rank, found and checked before anything is built. No torch until tensors are read.

Format: `reshard.formats.per_rank`; every file carries a manifest.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..checkpoint import TensorSpec, read_file
from ..errors import DamagedFileError, InconsistentShardsError, MissingFileError, UnsupportedSourceError
from ..formats.per_rank import SHARD
from ..manifest import KEY, Manifest, decode
from ..messages import shown
from ..storage import LocalFolder

if TYPE_CHECKING:
    import torch


class RankFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank loads.

    Attributes:
        folder: where its files are.
        manifest: what its first file says of the set.
        specs: its tensors, under their stored names.
    """

    folder: Path
    manifest: Manifest
    specs: dict[str, TensorSpec]

    @property
    def description(self) -> str:
        """How messages call it."""
        return f"the shard of rank {self.manifest.tp_rank} in {self.folder}"

    def read(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Stored names with their tensors, one in memory at a time, on the CPU.

        Raises:
            DamagedFileError: a file was cut short since its header was read.
        """
        import torch

        opened = LocalFolder(self.folder)
        try:
            for name, spec in self.specs.items():
                tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
                raw = tensor.reshape(-1).view(torch.uint8).numpy().data
                opened.read_into(spec.file, spec.offset_bytes, raw)
                yield name, tensor
        finally:
            opened.close()


def find_rank_files(folder: Path, tp_rank: int, tp_size: int) -> RankFiles:
    """The files of one rank, with headers and manifests checked; other ranks' files are not opened.

    Args:
        folder: where the files are.
        tp_rank: the rank, from 0 on.
        tp_size: the degree.

    Raises:
        MissingFileError: no shards at all, or not all of this rank's.
        InconsistentShardsError: shards of another degree, or files of this rank's name that are not its own.
        DamagedFileError: a file that contradicts its format, or says nothing of itself.
        UnsupportedSourceError: quantized shards, or shards cut by a roles file.
    """
    names = _own_names(folder, tp_rank, tp_size)
    opened = LocalFolder(folder)
    try:
        held = {name: read_file(opened, name) for name in names}
    finally:
        opened.close()
    manifests = {name: _manifest(folder / name, metadata) for name, (_, metadata) in held.items()}
    manifest = manifests[names[0]]
    for name, shard_manifest in manifests.items():
        _check_manifest(folder / name, shard_manifest, manifest, tp_rank, tp_size)
    _check_complete(folder, names, manifest, tp_rank)
    return RankFiles(
        folder=folder,
        manifest=manifest,
        specs={tensor: spec for specs, _ in held.values() for tensor, spec in specs.items()},
    )


def _place(name: str) -> tuple[int, int] | None:
    """Rank and degree in a file's name."""
    match = SHARD.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def _own_names(folder: Path, tp_rank: int, tp_size: int) -> list[str]:
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder; name the one that was cut with tp_size={tp_size}")
    places = {path.name: place for path in sorted(folder.iterdir()) if (place := _place(path.name))}
    if own := [name for name, place in places.items() if place == (tp_rank, tp_size)]:
        return own
    degrees = sorted({degree for _, degree in places.values()})
    if not degrees:
        raise MissingFileError(
            f"{folder} holds no model-rank-RR-of-NN.safetensors; cut the checkpoint with tp_size={tp_size}"
        )
    if tp_size not in degrees:
        held = " and ".join(map(str, degrees))
        raise InconsistentShardsError(
            f"{folder} is cut for tp_size={held}, but the number of processes is {tp_size}; start {held}, or "
            f"cut it again with tp_size={tp_size}"
        )
    raise MissingFileError(
        f"{folder} lacks the shard of rank {tp_rank} of {tp_size}; fetch it, or cut the checkpoint again"
    )


def _manifest(file: Path, metadata: dict[str, str]) -> Manifest:
    if KEY not in metadata:
        raise DamagedFileError(f"{file} has no manifest: it does not say of which model and rank it is")
    return decode(metadata[KEY], str(file))


def _check_manifest(
    file: Path, shard_manifest: Manifest, first: Manifest, tp_rank: int, tp_size: int
) -> None:
    """Compare what a file says of itself with what is asked of it: its name alone proves nothing."""
    if (shard_manifest.tp_rank, shard_manifest.tp_size) != (tp_rank, tp_size):
        raise InconsistentShardsError(
            f"{file} was written for rank {shard_manifest.tp_rank} of tp_size={shard_manifest.tp_size}, but "
            f"rank {tp_rank} of {tp_size} would load it; it was renamed, or is of another set"
        )
    if (shard_manifest.origin, shard_manifest.format, shard_manifest.files) != (
        first.origin,
        first.format,
        first.files,
    ):
        raise InconsistentShardsError(f"{file} is of another checkpoint than the files beside it")
    if shard_manifest.recipe is not None:
        raise UnsupportedSourceError(
            f"{file} holds quantized weights, which are loaded as they were saved; merge and dequantize them"
        )
    if shard_manifest.roles is not None:
        raise UnsupportedSourceError(
            f"{file} is cut by a roles file, and DeepSpeed cuts by rules of its own; cut the checkpoint "
            "again without `roles`"
        )


def _check_complete(folder: Path, names: list[str], manifest: Manifest, tp_rank: int) -> None:
    needed = {name for name in manifest.files if (_place(name) or (None,))[0] == tp_rank}
    if missing := needed - set(names):
        raise MissingFileError(
            f"{folder} lacks {shown(sorted(missing))}; fetch it, or cut the checkpoint again"
        )
    if strange := set(names) - needed:
        raise InconsistentShardsError(f"{folder} holds {shown(sorted(strange))} of another set; remove it")
