"""`vllm`: the sharded state that vLLM's `sharded_state` load format reads.

Source: vLLM, model_executor/model_loader/sharded_state_loader.py and models/llama.py: the running model's own
names, `[q_r | k_r | v_r]`, `[gate_r | up_r]`, a vocabulary padded to 64, one KV head per rank where there are
fewer heads than ranks. The files do not say their degree; our manifest does.
"""

import re
from collections.abc import Iterator
from typing import Final

from reshard.architectures.schema import Role
from reshard.errors import CannotSplitError, DamagedFileError, InconsistentShardsError, UnsupportedTargetError
from reshard.layout import Part, rank_units
from reshard.model import Model
from reshard.rules import Rule, Rules, check_heads
from reshard.storage import Folder
from reshard.tensors import LogicalTensor, StoredTensor, copy_of, padded_share

from .base import Format, Layout, Options, Source, SourceFile, TargetFile, by_size
from .layers import Layer, Layers, Share, columns, fused, holder
from .naming import Expected, one_dtype, placed
from .reading import contents, model_of

_FILE: Final = re.compile(r"model-rank-(\d+)-part-(\d+)\.safetensors")
#: Dense families that vLLM builds from the modules of its Llama.
_FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
_PAD: Final = 64
_PARAMS: Final = ("weight", "bias")
#: vLLM's loader takes parts of any size; this is the size at which vLLM itself closes them.
_LONGEST_BYTES: Final = 5 * 2**30


def _write(source: Source, options: Options) -> Layout:
    _check(source, options.tp_size)
    layers = Layers(Rules(source.model, source.tensors))
    files = []
    for rank in range(options.tp_size):
        tensors = {t.name: t for t in _rank(source, layers, options.tp_size, rank)}
        for part, group in enumerate(by_size(tensors, min(options.max_shard_bytes, _LONGEST_BYTES))):
            files.append(
                TargetFile(
                    name=f"model-rank-{rank}-part-{part}.safetensors",
                    container="safetensors",
                    tensors=group,
                    rank=rank,
                )
            )
    return Layout(
        format="vllm",
        tp_size=options.tp_size,
        files=tuple(files),
        notes=(_note(options.tp_size),),
    )


def _note(tp_size: int) -> str:
    return (
        f"vLLM takes it with --load-format sharded_state --tensor-parallel-size {tp_size}; with any other "
        "degree it fills part of the model in silence"
    )


def _check(source: Source, tp_size: int) -> None:
    kind = source.model.model_type
    if kind not in _FAMILIES:
        raise UnsupportedTargetError(
            f"the vllm format is known for dense models only, {', '.join(_FAMILIES)}; not for {kind!r}"
        )
    if source.model.config.get("quantization_config"):
        raise UnsupportedTargetError(
            "vLLM repacks quantized weights when it loads them; that is not known here"
        )
    check_heads(source.model, tp_size)


def _rank(source: Source, layers: Layers, tp_size: int, tp_rank: int) -> Iterator[StoredTensor]:
    for name, rule in layers.outside.items():
        tensor = source.tensors[name]
        if rule.role in ("embedding", "head"):
            if rule.role == "embedding" or not source.model.is_tied:
                yield _vocabulary(layers.full_name(name), name, tensor, tp_size, tp_rank)
        else:
            yield copy_of(name, tensor, stored_as=layers.full_name(name))
    for layer in layers.layers:
        yield from _layer(layers, layer, tp_size, tp_rank)


def _vocabulary(stored_as: str, name: str, tensor: LogicalTensor, tp_size: int, tp_rank: int) -> StoredTensor:
    """The rank's rows of the padded vocabulary; rows beyond it are zero."""
    padded = -(-tensor.shape[0] // _PAD) * _PAD
    if padded % tp_size:
        raise CannotSplitError(
            f"{name}: vLLM pads {tensor.shape[0]} tokens to {padded}, which tp_size={tp_size} does not divide"
        )
    return padded_share(stored_as, name, tensor, padded, tp_size, tp_rank)


def _layer(layers: Layers, layer: Layer, tp_size: int, tp_rank: int) -> Iterator[StoredTensor]:
    geometry = layers.rules.geometry
    query = rank_units(Part(name="query", units=geometry.heads), tp_size, tp_rank)
    kv = rank_units(Part(name="key", units=geometry.kv_heads, sharing="replicated"), tp_size, tp_rank)
    qkv = [Share(part="query", units=query), Share(part="key", units=kv), Share(part="value", units=kv)]
    up = holder(layer, "up", "weight")
    assert up is not None
    width = layers.tensor(up).shape[0] // (2 if up.role == "mlp_gate_up" else 1)
    units = rank_units(Part(name="features", units=width), tp_size, tp_rank)
    gate_up = [Share(part="gate", units=units), Share(part="up", units=units)]
    for part, joined, shares in (("query", "qkv_proj", qkv), ("up", "gate_up_proj", gate_up)):
        for param in _PARAMS:
            rule_held = holder(layer, part, param)
            if rule_held is not None:
                module = layers.full_name(f"{rule_held.module.rpartition('.')[0]}.{joined}")
                stored = fused(f"{module}.{param}", layers, layer, param, shares)
                assert stored is not None
                yield stored
    for role, params in layer.rules.items():
        for param, rule in params.items():
            if role in ("attention_output", "mlp_output"):
                is_cut = param == "weight"
                name = layers.full_name(rule.name)
                yield columns(name, layers, rule, tp_size, tp_rank) if is_cut else _copy(layers, rule)
            elif role.endswith("norm"):
                yield _copy(layers, rule)
    for rule in layer.norms:
        yield _copy(layers, rule)


def _copy(layers: Layers, rule: Rule) -> StoredTensor:
    return copy_of(rule.name, layers.tensor(rule), stored_as=layers.full_name(rule.name))


def _evidence(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in names if _FILE.fullmatch(n))


def _read(folder: Folder, model: Model | None) -> Source:
    model = model_of(folder, model)
    ranks: dict[int, dict[str, dict[str, StoredTensor]]] = {}
    for file in _evidence(folder.files()):
        match = _FILE.fullmatch(file)
        assert match is not None
        ranks.setdefault(int(match[1]), {})[file] = contents(folder, file).tensors
    tp_size = len(ranks)
    if set(ranks) != set(range(tp_size)):
        raise InconsistentShardsError(
            f"{folder.path('')} has files of ranks {sorted(ranks)}; some are missing"
        )
    source = _expected(folder, model, {k: t for of in ranks[0].values() for k, t in of.items()}, tp_size)
    layers = Layers(Rules(model, source.tensors))
    files = []
    for rank in range(tp_size):
        layout = {t.name: t for t in _rank(source, layers, tp_size, rank)}
        held = {name for of in ranks[rank].values() for name in of}
        if held != set(layout):
            raise InconsistentShardsError(
                f"{folder.path('')}: rank {rank}'s files hold {len(held)} tensors where {len(layout)} are "
                "expected"
            )
        for file, tensors in ranks[rank].items():
            mine = placed([layout[name] for name in tensors], tensors, folder.path(file))
            files.append(SourceFile(name=file, rank=rank, tensors=mine))
    return Source(
        format="vllm", folder=folder, model=model, tensors=source.tensors, files=tuple(files), tp_size=tp_size
    )


def _expected(folder: Folder, model: Model, first: dict[str, StoredTensor], tp_size: int) -> Source:
    """The logical tensors that vLLM's names stand for."""
    geometry = model.known()[1]
    widths = [t.shape[0] * tp_size // 2 for name, t in first.items() if name.endswith(".gate_up_proj.weight")]
    if not widths:
        raise DamagedFileError(f"{folder.path('')} has no gate_up_proj; it is not of a family that is known")
    expected = Expected(model, one_dtype(first.values(), folder.path("")), widths[0])
    tensors = expected.tensors
    for name, stored in first.items():
        module, _, param = name.rpartition(".")
        number = next((int(word) for word in module.split(".") if word.isdecimal()), None)
        if module.endswith(".qkv_proj"):
            _add_all(expected, ("query", "key", "value"), param, number)
        elif module.endswith(".gate_up_proj"):
            _add_all(expected, ("mlp_gate", "mlp_up"), param, number)
        elif module.endswith((".o_proj", ".down_proj")) and param == "weight":
            expected.add("attention_output" if module.endswith(".o_proj") else "mlp_output", param, number)
        elif module.endswith(("embed_tokens", "lm_head")):
            tensors[name] = LogicalTensor(dtype=stored.dtype, shape=(geometry.vocab, *stored.shape[1:]))
        else:
            tensors[name] = LogicalTensor(dtype=stored.dtype, shape=stored.shape)
    return Source(format="vllm", folder=folder, model=model, tensors=tensors, files=())


def _add_all(expected: Expected, roles: tuple[Role, ...], param: str, index: int | None) -> None:
    for role in roles:
        expected.add(role, param, index)


FORMAT: Final = Format(
    name="vllm",
    evidence=_evidence,
    read=_read,
    write=_write,
)
