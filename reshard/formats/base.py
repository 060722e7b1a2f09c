"""What every format implements: a reader says where tensors are, a writer says where they go."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from reshard.model import Model
from reshard.roles import Roles
from reshard.storage import Folder
from reshard.tensors import LogicalTensor, StoredTensor


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that tensors are read from.

    Attributes:
        name: relative to the source's folder.
        tensors: what it holds, with offsets.
        rank: whose it is; None where files belong to no rank.
    """

    name: str
    tensors: tuple[StoredTensor, ...]
    rank: int | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint to read.

    Attributes:
        format: one of the formats' names.
        folder: where the files are.
        model: what its configuration says.
        tensors: the logical tensors.
        files: who holds what.
        tp_size: degree of the source; 1 when merged.
        aliases: other names under which the checkpoint stores a logical tensor → that tensor.
        digests: SHA-256 of logical tensors, where the source says them; checked while reading.
        notes: sentences for the user, such as what was left out.
        roles: those that it was cut by; they serve for its next degree as well.
    """

    format: str
    folder: Folder
    model: Model
    tensors: dict[str, LogicalTensor]
    files: tuple[SourceFile, ...]
    tp_size: int = 1
    aliases: dict[str, str] = {}
    digests: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    roles: Roles | None = None


class TargetFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file to write.

    Attributes:
        name: relative to the target's folder.
        container: how it is written.
        tensors: what it holds; offsets come when its header is laid out.
        rank: whose it is; None for a file of all ranks.
        metadata: more of a safetensors file's metadata.
        root: where the dictionary of tensors stands in a PyTorch archive; empty: it is the archive.
        extra: other entries of the outermost dictionary of a PyTorch archive.
        lists: keys of a PyTorch archive whose value is a list: of the tensors `key.0`, `key.1` and so on.
    """

    name: str
    container: Literal["safetensors", "torch"]
    tensors: tuple[StoredTensor, ...]
    rank: int | None = None
    metadata: dict[str, str] = {}
    root: tuple[str, ...] = ()
    extra: dict[str, Any] = {}
    lists: tuple[str, ...] = ()


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint to write.

    Attributes:
        format: one of the formats' names.
        tp_size: its degree.
        files: who holds what.
        side_files: small files beside them → their bytes.
        notes: sentences for the user: what the runtimes will and won't take.
        roles: digest of the roles that it is cut by; None when a table says how.
    """

    format: str
    tp_size: int
    files: tuple[TargetFile, ...]
    side_files: dict[str, bytes] = {}
    notes: tuple[str, ...] = ()
    roles: str | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer may be asked for.

    Attributes:
        tp_size: the degree.
        max_shard_bytes: files of merged checkpoints are closed before they exceed it.
        roles: cut by these and not by the family's table; only for formats that take roles.
    """

    tp_size: int
    max_shard_bytes: int = 5 * 10**9
    roles: Roles | None = None


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """A format.

    Attributes:
        name: as in `Request.format`.
        evidence: returns the files in a list of names that are typical of this format; empty: another format.
        read: the source in a folder; the model comes from the folder's configuration, or from the caller.
            None: read by its manifest alone.
        write: the layout for a source's logical tensors; None: this format is only read.
        takes_roles: whether `write` heeds roles.
    """

    name: str
    evidence: Callable[[tuple[str, ...]], tuple[str, ...]]
    read: Callable[[Folder, Model | None], Source] | None = None
    write: Callable[[Source, Options], Layout] | None = None
    takes_roles: bool = False


def by_size(tensors: Mapping[str, StoredTensor], longest_bytes: int) -> list[tuple[StoredTensor, ...]]:
    """Tensors in their order, in groups that do not exceed `longest_bytes` unless one tensor does."""
    groups: list[list[StoredTensor]] = [[]]
    used = 0
    for tensor in tensors.values():
        if groups[-1] and used + tensor.size_bytes > longest_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.size_bytes
    return [tuple(group) for group in groups]
