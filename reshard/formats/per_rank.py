"""`safetensors`: one file set per rank under Hugging Face names, cut as DeepSpeed's AutoTP cuts.

The layout is this project's own. AutoTP's rule, run with DeepSpeed 0.19.8: Linears of a block along their
outputs, those before an all-reduce along their inputs with whole biases, the head's weight along its inputs,
embeddings and norms whole.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from reshard.cuts import Cut
from reshard.errors import InconsistentShardsError
from reshard.messages import shown
from reshard.model import Model
from reshard.role_cuts import RoleCut, cuts_by_roles
from reshard.roles import FILE, Roles, digest, encode
from reshard.rules import Policy, Rules, check_heads, logical_shape
from reshard.storage import Folder
from reshard.tensors import LogicalTensor, StoredTensor, copy_of, cut

from .base import Format, Layout, Options, Source, SourceFile, TargetFile, by_size
from .naming import placed
from .running import as_stored

#: Names that only this tool gives: rank and degree.
SHARD: Final = re.compile(r"model-rank-(\d+)-of-(\d+)(?:-part-\d+-of-\d+)?\.safetensors")

POLICY: Final = Policy(name="safetensors", head="features", uneven=True)

#: Families whose forward does not follow AutoTP's cut, or that AutoTP refuses.
_NOT_FOR_AUTOTP: Final = {
    "gpt2": "AutoTP refuses GPT-2's Conv1D",
    "mixtral": "AutoTP keeps experts whole on every rank; these shards cut them",
    "qwen3_moe": "AutoTP keeps experts whole on every rank; these shards cut them",
}


def ways_to_cut(source: Source, policy: Policy, tp_size: int) -> dict[str, Cut | None]:
    """How every tensor, aliases included, is shared out; None: whole on every rank. The same for all ranks.

    Args:
        source: the checkpoint.
        policy: which tensors the format cuts, and along what.
        tp_size: the degree.

    Raises:
        CannotSplitError: a head would be cut.
        UnknownArchitectureError: a tensor that the family's table does not mention.
    """
    rules = Rules(source.model, source.tensors)
    check_heads(source.model, tp_size)
    names = {name: source.aliases.get(name, name) for name in (*source.tensors, *source.aliases)}
    if tp_size == 1:
        return dict.fromkeys(names)
    # An alias is cut as its own role says: a tied head as a head, though its data are the embedding's.
    return {name: policy.cut(rules.rule(name, source.tensors[first])) for name, first in names.items()}


def ways_by_roles(source: Source, roles: Roles, tp_size: int) -> dict[str, RoleCut | None]:
    """As `ways_to_cut`, by roles.

    Args:
        source: the checkpoint.
        roles: what to go by.
        tp_size: the degree.

    Raises:
        CheckpointError: they do not fit the checkpoint, or the degree.
    """
    names = {name: source.aliases.get(name, name) for name in (*source.tensors, *source.aliases)}
    tensors = {name: source.tensors[first] for name, first in names.items()}
    stored = as_stored(roles, source.model.config, {name: t.shape for name, t in tensors.items()})
    return cuts_by_roles(stored, source.model, tensors, tp_size)


def rank_tensors(
    source: Source, ways: Mapping[str, Cut | RoleCut | None], tp_size: int, tp_rank: int
) -> dict[str, StoredTensor]:
    """Everything that a rank holds, under the names of the logical tensors.

    Args:
        source: the checkpoint.
        ways: how every tensor is shared out, aliases included.
        tp_size: the degree.
        tp_rank: the rank, from 0 on.

    Raises:
        CannotSplitError: a group of quantized elements would be cut.
    """
    tensors = {}
    for name, way in ways.items():
        first = source.aliases.get(name, name)
        tensor = source.tensors[first]
        if way is None:
            tensors[name] = copy_of(first, tensor, stored_as=name)
        else:
            stored = cut(first, tensor, way.dim, way.intervals(name, tp_size, tp_rank))
            tensors[name] = msgspec.structs.replace(stored, name=name)
    return tensors


def _write(source: Source, options: Options) -> Layout:
    files = []
    roles = options.roles
    ways: Mapping[str, Cut | RoleCut | None] = (
        ways_to_cut(source, POLICY, options.tp_size)
        if roles is None
        else ways_by_roles(source, roles, options.tp_size)
    )
    for rank in range(options.tp_size):
        tensors = rank_tensors(source, ways, options.tp_size, rank)
        groups = by_size(tensors, options.max_shard_bytes)
        stem = f"model-rank-{rank:02d}-of-{options.tp_size:02d}"
        for number, group in enumerate(groups, 1):
            part = "" if len(groups) == 1 else f"-part-{number:03d}-of-{len(groups):03d}"
            files.append(
                TargetFile(
                    name=f"{stem}{part}.safetensors",
                    container="safetensors",
                    tensors=group,
                    rank=rank,
                    metadata={"format": "pt"},
                )
            )
    return Layout(
        format="safetensors",
        tp_size=options.tp_size,
        files=tuple(files),
        side_files={FILE: encode(roles)} if roles else {},
        notes=(_roles_note(roles, ways) if roles else _autotp_note(source, options.tp_size),),
        roles=digest(roles) if roles else None,
    )


def _roles_note(roles: Roles, ways: Mapping[str, object]) -> str:
    count = sum(way is not None for way in ways.values())
    return (
        f"cut by roles: {count} of {len(ways)} tensors are shared out, as {FILE} beside them says; whoever "
        "loads them sums over the ranks after every row-parallel weight"
    )


def _autotp_note(source: Source, tp_size: int) -> str:
    if source.model.config.get("quantization_config"):
        return "DeepSpeed AutoTP does not take quantized shards"
    kind = source.model.model_type
    config = source.model.config
    reason = _NOT_FOR_AUTOTP.get(kind)
    if kind == "falcon" and not config.get("new_decoder_architecture"):
        reason = "AutoTP cuts this layout of Falcon's heads, or its alibi slopes, wrongly"
    if reason and tp_size > 1:
        return f"DeepSpeed AutoTP does not take it: {reason}"
    return f"DeepSpeed AutoTP takes it, with {tp_size} ranks exactly, through reshard.loaders.autotp"


def read_rank_files(
    folder: Folder, model: Model, format_name: str, ranks: list[dict[str, dict[str, StoredTensor]]]
) -> Source:
    """A source from files that were cut by AutoTP's rule and say nothing of it.

    Args:
        folder: where the files are.
        model: its configuration.
        format_name: whose files they are.
        ranks: for every rank file → name → tensor; the last entry is of files that belong to no rank.

    Raises:
        InconsistentShardsError: a rank lacks a tensor, or has one of another shape.
    """
    tp_size = len(ranks) - 1
    held = [{n: t for files in (r, ranks[-1]) for of in files.values() for n, t in of.items()} for r in ranks]
    for rank in range(1, tp_size):
        unmatched = tuple(sorted(set(held[rank]) ^ set(held[0])))
        if unmatched:
            raise InconsistentShardsError(
                f"{folder.path('')}: ranks 0 and {rank} differ in {shown(unmatched)}"
            )
    tensors = {
        name: LogicalTensor(
            dtype=stored.dtype,
            shape=logical_shape(model, POLICY, name, [held[r][name].shape for r in range(tp_size)]),
        )
        for name, stored in held[0].items()
    }
    source = Source(
        format=format_name, folder=folder, model=model, tensors=tensors, files=(), tp_size=tp_size
    )
    files = []
    ways = ways_to_cut(source, POLICY, tp_size)
    for number, rank_files in enumerate(ranks):
        owner = number if number < tp_size else None
        layout = rank_tensors(source, ways, tp_size, number % tp_size)
        for file, stored in rank_files.items():
            mine = [layout[name] for name in stored]
            files.append(SourceFile(name=file, rank=owner, tensors=placed(mine, stored, folder.path(file))))
    return msgspec.structs.replace(source, files=tuple(files))


FORMAT: Final = Format(
    name="safetensors",
    evidence=lambda _: (),  # recognised by its manifest
    write=_write,
    takes_roles=True,
)
