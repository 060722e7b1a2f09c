"""Which formats there are, and which one a folder holds. A new format is one module and one line here."""

from pathlib import Path
from typing import Final

from reshard.errors import (
    AmbiguousSourceError,
    MissingFileError,
    UnsupportedSourceError,
    UnsupportedTargetError,
)
from reshard.manifest import FILE
from reshard.messages import shown
from reshard.model import Model
from reshard.roles import Roles
from reshard.roles import read as read_roles
from reshard.storage import Folder

from . import deepspeed, huggingface, manifest_format, megatron, per_rank, transformers, vllm
from .base import Format, Source
from .deepspeed_layout import INDEX_FILE
from .megatron_names import LATEST_FILE

FORMATS: Final = {
    f.name: f
    for f in (
        per_rank.FORMAT,
        deepspeed.FORMAT,
        transformers.FORMAT,
        vllm.FORMAT,
        megatron.FORMAT,
        huggingface.FORMAT,
        manifest_format.FORMAT,
    )
}

#: Files that formats write beside the shards of a set.
SIDE_FILES: Final = (INDEX_FILE, LATEST_FILE)


def targets() -> dict[str, Format]:
    """The formats that can be written."""
    return {name: f for name, f in FORMATS.items() if f.write is not None}


def target(name: str) -> Format:
    """The format called `name`.

    Raises:
        UnsupportedTargetError: none that can be written.
    """
    known = targets().get(name)
    if known is None:
        raise UnsupportedTargetError(f"there is no target format {name!r}; there are {', '.join(targets())}")
    return known


def roles_for(name: str, file: Path | None, source: Source) -> Roles | None:
    """The roles by which the format called `name` is cut; None where it goes by rules.

    Args:
        name: the target's format.
        file: the roles file that was given.
        source: what is cut; without a file, the roles that it was cut by itself serve again.

    Raises:
        UnsupportedTargetError: a roles file for a format that has rules of its own.
        DamagedFileError: the file is none of roles.
    """
    if target(name).takes_roles:
        return source.roles if file is None else read_roles(file)
    if file is not None:
        takers = ", ".join(n for n, f in targets().items() if f.takes_roles)
        raise UnsupportedTargetError(
            f"`roles`: {name} is cut by rules of its own, or is not cut; formats that take roles: {takers}"
        )
    return None


def read_source(folder: Folder, model: Model | None = None) -> Source:
    """The checkpoint in `folder`, whatever its format.

    Args:
        folder: where it is.
        model: the configuration, for formats that have none beside them.

    Raises:
        AmbiguousSourceError: evidence of several formats.
        UnsupportedSourceError: evidence of none.
        MissingFileError: shards that this tool wrote, without their manifest.
        CheckpointError: the files contradict themselves or each other.
    """
    names = folder.files()
    evidence = {f.name: seen for f in FORMATS.values() if (seen := f.evidence(names))}
    shards = tuple(n for n in names if per_rank.SHARD.fullmatch(n))
    if manifest_format.FORMAT.name in evidence:
        _nothing_else(folder, {**evidence, per_rank.FORMAT.name: shards})
        evidence = {manifest_format.FORMAT.name: evidence[manifest_format.FORMAT.name]}
    elif shards:
        raise MissingFileError(
            f"{folder.path('')} holds {shown(shards)} but not the {FILE} that belongs to them; fetch it"
        )
    if not evidence:
        raise UnsupportedSourceError(
            f"{folder.path('')} holds no checkpoint that is known; it holds {shown(names) or 'nothing'}"
        )
    if len(evidence) > 1:
        listed = "; ".join(f"{name}: {shown(files)}" for name, files in evidence.items())
        raise AmbiguousSourceError(
            f"{folder.path('')} holds checkpoints of {len(evidence)} formats ({listed}); move one of "
            "them away"
        )
    (name,) = evidence
    read = FORMATS[name].read
    assert read is not None
    source = read(folder, model)
    if not source.tensors:
        raise UnsupportedSourceError(f"{folder.path('')} holds {shown(evidence[name])}, but no tensors in it")
    return source


def _nothing_else(folder: Folder, evidence: dict[str, tuple[str, ...]]) -> None:
    """A set that this tool wrote must not lie in one folder with another checkpoint."""
    known = {FILE, *SIDE_FILES, *manifest_format.read_manifest(folder).files}
    others = {f for files in evidence.values() for f in files if not f.endswith(".index.json")} - known
    if others:
        raise AmbiguousSourceError(
            f"{folder.path('')} holds a set with {FILE} and also {shown(tuple(sorted(others)))}, which is no "
            "part of it; move one of them away"
        )
