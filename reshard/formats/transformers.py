"""`transformers`: distributed shards, which transformers 5 loads with its own tensor parallelism.

Source: transformers 5.23, `save_pretrained(distributed_checkpoint=True)` and its plans; the shards here equal
what it writes itself, box for box. Names are those of the running model, every tensor is cut in contiguous
boxes, and what all ranks share is stored once.
"""

import json
import math
from collections.abc import Iterator
from typing import Final

import msgspec

from reshard.architectures.schema import Architecture, Role
from reshard.errors import CannotSplitError, UnsupportedTargetError
from reshard.layout import Interval
from reshard.rules import Rule, Rules
from reshard.tensors import Chunk, LogicalTensor, StoredTensor, along, copy_of

from .base import Format, Layout, Options, Source, TargetFile
from .layers import full_name
from .transformers_names import OFFSETS_KEY, evidence
from .transformers_source import read_transformers

#: Families that transformers has a plan for, among those with a table.
_FAMILIES: Final = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi", "phi3",
    "gpt_neox",
)  # fmt: skip
#: transformers adds a cut of the embedding where the attribute is called `embed_tokens`.
_EMBEDDING: Final = "embed_tokens"
#: Gathers fused rows after the product, so heads may be cut.
_GATHERS: Final = ("phi3",)

_COLUMN: Final[tuple[Role, ...]] = (
    "query", "key", "value", "query_key_value", "mlp_gate", "mlp_up", "mlp_gate_up", "head",
)  # fmt: skip
_ROW: Final[tuple[Role, ...]] = ("attention_output", "mlp_output")


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of the running model.

    Attributes:
        stored: all of it.
        dim: the dimension that is cut; None when it is stored once.
    """

    stored: StoredTensor
    dim: int | None


def _write(source: Source, options: Options) -> Layout:
    _check(source, options.tp_size)
    ranks: list[list[tuple[StoredTensor, tuple[int, ...]]]] = [[] for _ in range(options.tp_size)]
    for tensor in _running(source):
        if tensor.dim is None or options.tp_size == 1:
            ranks[0].append((tensor.stored, (0,) * len(tensor.stored.shape)))
            continue
        for rank in range(options.tp_size):
            part = _part(tensor, options.tp_size, rank)
            if part is not None:
                ranks[rank].append(part)
    return Layout(
        format="transformers",
        tp_size=options.tp_size,
        files=tuple(_file(rank, tensors) for rank, tensors in enumerate(ranks)),
        notes=(_note(options.tp_size),),
    )


def _note(tp_size: int) -> str:
    return (
        f"transformers 5 takes it, best with {tp_size} ranks, where each reads its own shard; with other "
        "degrees ranks read parts of several"
    )


def _check(source: Source, tp_size: int) -> None:
    kind = source.model.model_type
    table = source.model.known()[0]
    if kind not in _FAMILIES and table.others is None:
        raise UnsupportedTargetError(
            f"transformers has no tensor-parallel plan for {kind!r}; it has one for {', '.join(_FAMILIES)}"
        )
    if source.model.config.get("quantization_config"):
        raise UnsupportedTargetError("transformers refuses quantized distributed shards")
    geometry = source.model.known()[1]
    if kind not in _GATHERS and (geometry.heads % tp_size or geometry.kv_heads % tp_size):
        common = math.gcd(geometry.heads, geometry.kv_heads)
        works = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise CannotSplitError(
            f"transformers does not replicate KV heads: {geometry.heads} query and {geometry.kv_heads} "
            f"key/value heads cannot be shared out over tp_size={tp_size}; degrees that work: {works}"
        )


def _file(rank: int, tensors: list[tuple[StoredTensor, tuple[int, ...]]]) -> TargetFile:
    offsets = {stored.name: {"saved_offsets": list(at)} for stored, at in tensors}
    return TargetFile(
        name=f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors",
        container="safetensors",
        tensors=tuple(stored for stored, _ in tensors),
        rank=rank,
        metadata={"format": "pt", "DCP_VERSION": "1.0", OFFSETS_KEY: json.dumps(offsets)},
    )


def _part(tensor: Whole, tp_size: int, tp_rank: int) -> tuple[StoredTensor, tuple[int, ...]] | None:
    """The rank's box and where it begins, as DTensor's `Shard` has it: the last ranks may get nothing."""
    stored, dim = tensor.stored, tensor.dim
    assert dim is not None
    extent = stored.shape[dim]
    step = -(-extent // tp_size)
    begin, end = min(tp_rank * step, extent), min((tp_rank + 1) * step, extent)
    if begin == end:
        return None
    chunks = tuple(
        c for chunk in stored.chunks if (c := _clipped(chunk, dim, len(stored.shape), (begin, end)))
    )
    shape = tuple(end - begin if i == dim else n for i, n in enumerate(stored.shape))
    at = tuple(begin if i == dim else 0 for i in range(len(shape)))
    return msgspec.structs.replace(stored, shape=shape, chunks=chunks), at


def _clipped(chunk: Chunk, dim: int, dims: int, interval: Interval) -> Chunk | None:
    """What `interval` of the stored tensor's dimension `dim` has of a chunk."""
    inner = dim - (dims - len(chunk.box))
    low, high = chunk.box[inner]
    begin = max(interval[0], chunk.at[dim])
    end = min(interval[1], chunk.at[dim] + high - low)
    if begin >= end:
        return None
    start = low + begin - chunk.at[dim]
    box = tuple((start, start + end - begin) if i == inner else b for i, b in enumerate(chunk.box))
    at = tuple(begin - interval[0] if i == dim else a for i, a in enumerate(chunk.at))
    return Chunk(tensor=chunk.tensor, box=box, at=at)


def _running(source: Source) -> Iterator[Whole]:
    """The tensors of the running model, whole."""
    rules = Rules(source.model, source.tensors)
    experts: dict[str, list[Rule]] = {}
    has_head = False
    for name, tensor in source.tensors.items():
        rule = rules.rule(name)
        if rule.role == "replicated" and rule.stars and rule.param in ("", "inv_freq"):
            continue
        if len(rule.stars) == 2:
            experts.setdefault(_expert_module(rules.table, rule), []).append(rule)
            continue
        has_head |= rule.role == "head"
        running = _running_name(rules.table, rule, name)
        yield Whole(stored=copy_of(name, tensor, stored_as=running), dim=_dim(rule, tensor))
    for module, held in experts.items():
        yield from _stacked(module, held, rules)
    if source.model.is_tied and not has_head:
        # A tied tensor is looked for under both names.
        name = next(n for n in source.tensors if rules.rule(n).role == "embedding")
        yield Whole(stored=copy_of(name, source.tensors[name], stored_as="lm_head.weight"), dim=0)


def _running_name(table: Architecture, rule: Rule, name: str) -> str:
    if rule.role == "head":
        return f"lm_head.{rule.param}"
    return full_name(table, name).replace(".block_sparse_moe.gate.", ".mlp.gate.")


def _dim(rule: Rule, tensor: LogicalTensor) -> int | None:
    if rule.role in _COLUMN:
        return 0 if rule.param == "bias" else len(tensor.shape) - 2
    if rule.role in _ROW:
        return None if rule.param == "bias" else len(tensor.shape) - 1
    if rule.role == "embedding" and rule.module.endswith(_EMBEDDING):
        return 0
    return None


def _expert_module(table: Architecture, rule: Rule) -> str:
    """`model.layers.0.mlp.experts` for any weight of layer 0's experts."""
    inside = rule.module.partition(".experts.")[0]
    return full_name(table, inside).replace("block_sparse_moe", "mlp") + ".experts"


def _stacked(module: str, held: list[Rule], rules: Rules) -> Iterator[Whole]:
    """A layer's experts in two tensors: `[experts, gate | up, hidden]` and `[experts, hidden, inter]`."""
    by_role: dict[Role, list[Rule]] = {}
    for rule in sorted(held, key=lambda r: int(r.stars[1])):
        by_role.setdefault(rule.role, []).append(rule)
    wanted: tuple[tuple[str, tuple[Role, ...], int], ...] = (
        ("gate_up_proj", ("mlp_gate", "mlp_up"), 1),
        ("down_proj", ("mlp_output",), 2),
    )
    for name, roles, dim in wanted:
        chunks: list[Chunk] = []
        at = 0
        for role in roles:
            for number, rule in enumerate(by_role[role]):
                tensor = rules.tensors[rule.name]
                (whole,) = along(rule.name, tensor, 0, [(0, tensor.shape[0])])
                chunks.append(msgspec.structs.replace(whole, at=(number, at, 0)))
            at += tensor.shape[0]
        first = rules.tensors[by_role[roles[0]][0].name]
        shape = (len(by_role[roles[0]]), at, first.shape[1])
        yield Whole(
            stored=StoredTensor(
                name=f"{module}.{name}", dtype=first.dtype, shape=shape, chunks=tuple(chunks)
            ),
            dim=dim,
        )


FORMAT: Final = Format(
    name="transformers",
    evidence=evidence,
    read=read_transformers,
    write=_write,
)
