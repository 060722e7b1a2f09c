"""Which of a model's tensors a Megatron rank holds, in which order of rows, for reader and writer.

Source: Megatron-LM, tools/checkpoint/schema_core.py and checkpoint versions 0 to 3.0; transformers' converter
of Megatron GPT-2 for the order of query, key and value in each version.
"""

from collections.abc import Iterator
from typing import Final

from reshard.architectures.schema import Role
from reshard.errors import CannotSplitError, UnsupportedTargetError
from reshard.layout import Part, rank_units
from reshard.rules import Rule
from reshard.tensors import StoredTensor, copy_of, padded_share

from .base import Source
from .layers import Layer, Layers, Share, columns, fused, holder, interleaved
from .megatron_names import EMBEDDING, FINAL_NORM, HEAD, LAYER, NORMS, POSITION

_FAMILIES: Final = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
#: Megatron's default; the padded vocabulary is a multiple of it and of the degree together.
DIVISIBLE_BY: Final = 128
_PARAMS: Final = ("weight", "bias")
_PER_HEAD: Final = {"q_norm": "self_attention.q_layernorm", "k_norm": "self_attention.k_layernorm"}


def check(source: Source, tp_size: int) -> None:
    """Check that Megatron has a place for every tensor.

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
    multiple = DIVISIBLE_BY * tp_size
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
