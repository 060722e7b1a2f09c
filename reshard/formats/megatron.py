"""`megatron`: `mp_rank_XX` files, read under legacy and mcore names, at any TP and PP; written under mcore's.

Source: Megatron-LM, tools/checkpoint/schema_core.py and checkpoint versions 0 to 3.0; transformers' converter
of Megatron GPT-2 for the order of query, key and value in each version.
"""

from collections.abc import Iterator
from typing import Any, Final

from reshard.architectures.schema import Role
from reshard.errors import CannotSplitError, UnsupportedTargetError
from reshard.layout import Part, rank_units
from reshard.rules import Rule, Rules
from reshard.tensors import StoredTensor, copy_of, padded_share

from .base import Format, Layout, Options, Source, TargetFile
from .layers import Layer, Layers, Share, columns, fused, holder, interleaved
from .megatron_names import EMBEDDING, FINAL_NORM, HEAD, LAYER, NORMS, POSITION, evidence

_FAMILIES: Final = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
#: Megatron's default; the padded vocabulary is a multiple of it and of the degree together.
_DIVISIBLE_BY: Final = 128
_VERSION: Final = 3.0
_PARAMS: Final = ("weight", "bias")
_PER_HEAD: Final = {"q_norm": "self_attention.q_layernorm", "k_norm": "self_attention.k_layernorm"}


def _write(source: Source, options: Options) -> Layout:
    check(source, options.tp_size)
    layers = Layers(Rules(source.model, source.tensors))
    rows = padded_rows(source.model.known()[1].vocab, options.tp_size)
    files = []
    for rank in range(options.tp_size):
        files.append(
            TargetFile(
                name=f"release/mp_rank_{rank:02d}/model_optim_rng.pt",
                container="torch",
                tensors=tuple(rank_tensors(layers, options.tp_size, rank, _VERSION, rows)),
                rank=rank,
                root=("model",),
                extra={
                    "args": _arguments(layers, options.tp_size, rows),
                    "checkpoint_version": _VERSION,
                    "iteration": 0,
                },
            )
        )
    return Layout(
        format="megatron",
        tp_size=options.tp_size,
        files=tuple(files),
        side_files={"latest_checkpointed_iteration.txt": b"release"},
        notes=(
            "Megatron-LM takes it with --ckpt-format torch and --use-checkpoint-args, at the same degree",
        ),
    )


def check(source: Source, tp_size: int) -> None:
    """See to it that Megatron has a place for every tensor.

    Raises:
        UnsupportedTargetError: the family is not one that is known.
        CannotSplitError: Megatron does not replicate KV heads.
    """
    kind = source.model.model_type
    if kind not in _FAMILIES:
        raise UnsupportedTargetError(
            f"the megatron format is known for {', '.join(_FAMILIES)}, not for {kind!r}"
        )
    if source.model.config.get("quantization_config"):
        raise UnsupportedTargetError("the megatron format holds no quantized weights of other libraries")
    geometry = source.model.known()[1]
    works = [n for n in range(1, geometry.kv_heads + 1) if geometry.kv_heads % n == 0]
    if tp_size not in works:
        raise CannotSplitError(
            f"Megatron does not replicate KV heads: {geometry.kv_heads} cannot be shared out over "
            f"tp_size={tp_size}; degrees that work: {', '.join(map(str, works))}"
        )


def padded_rows(vocab: int, tp_size: int) -> int:
    """Rows of the padded vocabulary."""
    multiple = _DIVISIBLE_BY * tp_size
    return -(-vocab // multiple) * multiple


def rank_tensors(
    layers: Layers, tp_size: int, tp_rank: int, version: float, rows: int
) -> Iterator[StoredTensor]:
    """What a rank holds of the whole model, under mcore's names with the norms inside the Linears.

    Args:
        layers: the model.
        tp_size: the degree.
        tp_rank: the rank.
        version: the checkpoint's; it decides the order of query, key and value.
        rows: of the padded vocabulary, over all ranks.
    """
    names: dict[Role, str] = {"position": POSITION, "final_norm": FINAL_NORM}
    for name, rule in layers.outside.items():
        tensor = layers.tensor(rule)
        if rule.role == "embedding":
            yield padded_share(EMBEDDING + ".weight", name, tensor, rows, tp_size, tp_rank)
        elif rule.role == "head":
            yield padded_share(f"{HEAD}.{rule.param}", name, tensor, rows, tp_size, tp_rank)
        elif rule.role in names:
            yield copy_of(name, tensor, stored_as=f"{names[rule.role]}.{rule.param}")
        else:
            raise UnsupportedTargetError(f"{name} has no place in Megatron's model")
    for layer in layers.layers:
        prefix = LAYER.format(layer.index)
        yield from _norms(layers, layer, prefix)
        yield from _attention(layers, layer, prefix, tp_size, tp_rank, version)
        yield from _mlp(layers, layer, prefix, tp_size, tp_rank)


def _norms(layers: Layers, layer: Layer, prefix: str) -> Iterator[StoredTensor]:
    for role, name in NORMS.items():
        for param, rule in layer.rules.get(role, {}).items():
            yield copy_of(rule.name, layers.tensor(rule), stored_as=f"{prefix}{name}{param}")
    for rule in layer.norms:
        name = _PER_HEAD.get(rule.module.rpartition(".")[2], "")
        if not name:
            raise UnsupportedTargetError(f"{rule.name} has no place in Megatron's model")
        yield copy_of(rule.name, layers.tensor(rule), stored_as=f"{prefix}{name}.{rule.param}")


def _attention(
    layers: Layers, layer: Layer, prefix: str, tp_size: int, tp_rank: int, version: float
) -> Iterator[StoredTensor]:
    geometry = layers.rules.geometry
    query = rank_units(Part(name="query", units=geometry.heads), tp_size, tp_rank)
    kv = rank_units(Part(name="key", units=geometry.kv_heads), tp_size, tp_rank)
    shares = [Share(part="query", units=query), Share(part="key", units=kv), Share(part="value", units=kv)]
    for param in _PARAMS:
        name = f"{prefix}self_attention.linear_qkv.{param}"
        if version == 1.0:
            stored = interleaved(name, layers, layer, param, shares, geometry.head_dim)
        else:
            # One block for each KV head with its queries; before version 1.0 all queries came first.
            stored = fused(name, layers, layer, param, shares, kv[1] - kv[0] if version >= 2.0 else 1)
        if stored is not None:
            yield stored
    name = f"{prefix}self_attention.linear_proj"
    yield from _row(layers, layer, "attention_output", name, tp_size, tp_rank)


def _mlp(layers: Layers, layer: Layer, prefix: str, tp_size: int, tp_rank: int) -> Iterator[StoredTensor]:
    width = mlp_width(layers, layer)
    units = rank_units(Part(name="features", units=width), tp_size, tp_rank)
    parts = ("gate", "up") if holder(layer, "gate", "weight") else ("up",)
    for param in _PARAMS:
        shares = [Share(part=part, units=units) for part in parts]
        stored = fused(f"{prefix}mlp.linear_fc1.{param}", layers, layer, param, shares)
        if stored is not None:
            yield stored
    yield from _row(layers, layer, "mlp_output", f"{prefix}mlp.linear_fc2", tp_size, tp_rank)


def mlp_width(layers: Layers, layer: Layer) -> int:
    """Features inside the MLP."""
    rule = holder(layer, "up", "weight")
    assert rule is not None
    assert rule.outputs is not None
    return rule.outputs.axis.extent // len(rule.outputs.axis.parts)


def _row(
    layers: Layers, layer: Layer, role: Role, name: str, tp_size: int, tp_rank: int
) -> Iterator[StoredTensor]:
    params: dict[str, Rule] = layer.rules.get(role, {})
    if "weight" in params:
        yield columns(f"{name}.weight", layers, params["weight"], tp_size, tp_rank)
    if "bias" in params:
        rule = params["bias"]
        yield copy_of(rule.name, layers.tensor(rule), stored_as=f"{name}.bias")


def _arguments(layers: Layers, tp_size: int, rows: int) -> dict[str, Any]:
    """What `--use-checkpoint-args` reads."""
    geometry, config = layers.rules.geometry, layers.rules.model.config
    is_gpt2 = layers.rules.model.model_type == "gpt2"
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    rope = config.get("rope_parameters") or {}
    first = layers.layers[0]
    qkv_bias = holder(first, "query", "bias") is not None
    return {
        "num_layers": geometry.layers,
        "hidden_size": geometry.hidden,
        "ffn_hidden_size": mlp_width(layers, first),
        "num_attention_heads": geometry.heads,
        "group_query_attention": geometry.kv_heads != geometry.heads,
        "num_query_groups": geometry.kv_heads,
        "kv_channels": geometry.head_dim,
        "max_position_embeddings": positions,
        "seq_length": positions,
        "padded_vocab_size": rows,
        "vocab_size": geometry.vocab,
        "make_vocab_size_divisible_by": _DIVISIBLE_BY,
        "tensor_model_parallel_size": tp_size,
        "pipeline_model_parallel_size": 1,
        "swiglu": holder(first, "gate", "weight") is not None,
        "normalization": "LayerNorm" if is_gpt2 else "RMSNorm",
        "norm_epsilon": config.get("rms_norm_eps") or config.get("layer_norm_epsilon"),
        "position_embedding_type": "learned_absolute" if is_gpt2 else "rope",
        "rotary_base": rope.get("rope_theta") or config.get("rope_theta"),
        "rotary_percent": 1.0,
        "add_bias_linear": "bias" in first.rules.get("mlp_output", {}),
        "add_qkv_bias": qkv_bias,
        "qk_layernorm": bool(first.norms),
        "untie_embeddings_and_output_weights": any(r.role == "head" for r in layers.outside.values()),
        "transformer_impl": "transformer_engine",
        "use_legacy_models": False,
        "ckpt_format": "torch",
    }


def _read(*arguments: Any) -> Source:
    from .megatron_source import read_megatron

    return read_megatron(*arguments)


FORMAT: Final = Format(
    name="megatron",
    summary="mp_rank files under mcore's names",
    evidence=evidence,
    read=_read,
    write=_write,
)
