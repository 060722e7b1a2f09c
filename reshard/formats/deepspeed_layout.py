"""Names and cuts of the tensors in DeepSpeed's pre-shards, for their reader and their writer.

Source: DeepSpeed 0.19.8, module_inject/load_checkpoint.py and containers, and bytes that it wrote itself.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from reshard.architectures.schema import Role
from reshard.errors import UnsupportedTargetError
from reshard.rules import Rule
from reshard.tensors import StoredTensor, copy_of, cut

from .base import Source
from .layers import Layer, Layers, Share, columns, fused

#: The file that names all others.
INDEX_FILE: Final = "ds_inference_config.json"
#: BLOOM's kernel takes its heads as the checkpoint has them.
_HEAD_BLOCKS: Final = ("bloom",)
#: The parameter that holds an int8 weight's scales, [out, ranks that have columns of it].
_SCALE: Final = "weight_scale"

#: Our role → the injected module's parameter, for weight and bias.
NORMS: Final[dict[Role, tuple[str, str]]] = {
    "input_norm": ("norm_w", "norm_b"),
    "post_attention_norm": ("mlp.attn_nw", "mlp.attn_nb"),
}
ROWS: Final[dict[Role, tuple[str, str]]] = {
    "attention_output": ("attention.attn_ow", "attention.attn_ob"),
    "mlp_output": ("mlp.output_w", "mlp.output_b"),
}
PARAMS: Final = ("weight", "bias")

#: An int8 weight is a list under its key; what this adds to the key names the parts of one.
CODES: Final = ".0"
SCALES: Final = ".1"


def layer_tensors(layers: Layers, layer: Layer, tp_size: int, tp_rank: int) -> Iterator[StoredTensor]:
    """What a rank holds of one block, under the injected module's names.

    Args:
        layers: the model.
        layer: the block.
        tp_size: the degree.
        tp_rank: the rank, from 0 on.
    """
    for role, names in NORMS.items():
        for param, name in zip(PARAMS, names, strict=True):
            rule = _rule(layer, role, param)
            if rule is not None:
                yield copy_of(rule.name, layers.tensor(rule), stored_as=f"{layer.prefix}.{name}")
    geometry = layers.rules.geometry
    heads = geometry.heads // tp_size
    units = (tp_rank * heads, (tp_rank + 1) * heads)
    blocks = heads if layers.rules.model.model_type in _HEAD_BLOCKS else 1
    shares = [Share(part=part, units=units) for part in ("query", "key", "value")]
    for param, name in zip(PARAMS, ("attention.attn_qkvw", "attention.attn_qkvb"), strict=True):
        yield from _outputs(f"{layer.prefix}.{name}", layers, layer, param, shares, blocks)
    yield from _mlp_up(layers, layer, tp_size, tp_rank)
    for role, (weight, bias) in ROWS.items():
        rule = _rule(layer, role, "weight")
        if rule is None:
            raise UnsupportedTargetError(f"{layer.prefix} has no {role}, which DeepSpeed's module needs")
        yield from _inputs(f"{layer.prefix}.{weight}", layers, layer, rule, tp_size, tp_rank)
        held = _rule(layer, role, "bias")
        if held is not None:
            yield copy_of(held.name, layers.tensor(held), stored_as=f"{layer.prefix}.{bias}")


def _mlp_up(layers: Layers, layer: Layer, tp_size: int, tp_rank: int) -> Iterator[StoredTensor]:
    weight = _rule(layer, "mlp_up", "weight")
    assert weight is not None
    width = layers.tensor(weight).shape[0]
    if width != 4 * layers.rules.geometry.hidden or width % tp_size:
        raise UnsupportedTargetError(
            f"{weight.name} has {width} rows; DeepSpeed's module takes 4 × hidden, a multiple of the degree"
        )
    share = width // tp_size
    units = Share(part="up", units=(tp_rank * share, (tp_rank + 1) * share))
    for param, name in zip(PARAMS, ("mlp.inter_w", "mlp.inter_b"), strict=True):
        yield from _outputs(f"{layer.prefix}.{name}", layers, layer, param, [units])


def _outputs(
    name: str, layers: Layers, layer: Layer, param: str, shares: Sequence[Share], blocks: int = 1
) -> Iterator[StoredTensor]:
    """A rank's rows of a weight or a bias."""
    stored = fused(name, layers, layer, param, shares, blocks)
    if stored is None:
        return
    if stored.dtype != "int8":
        yield _transposed(stored)
        return
    scales = fused(name + SCALES, layers, layer, _SCALE, shares, blocks)
    assert scales is not None
    yield msgspec.structs.replace(stored, name=name + CODES)
    yield scales


def _inputs(
    name: str, layers: Layers, layer: Layer, rule: Rule, tp_size: int, tp_rank: int
) -> Iterator[StoredTensor]:
    """A rank's columns of a row-parallel weight."""
    stored = columns(name, layers, rule, tp_size, tp_rank)
    if stored.dtype != "int8":
        yield _transposed(stored)
        return
    scale = layer.rules[rule.role][_SCALE]
    yield msgspec.structs.replace(stored, name=name + CODES)
    # One column of scales for each rank, of which each rank has its own.
    mine = cut(scale.name, layers.tensor(scale), 1, ((tp_rank, tp_rank + 1),))
    yield msgspec.structs.replace(mine, name=name + SCALES)


def _rule(layer: Layer, role: Role, param: str) -> Rule | None:
    return layer.rules.get(role, {}).get(param)


def _transposed(stored: StoredTensor) -> StoredTensor:
    return msgspec.structs.replace(stored, transposed=len(stored.shape) == 2)


def outside_tensors(source: Source, layers: Layers) -> Iterator[StoredTensor]:
    """Embeddings, final norm and head, whole, in one file: the loader wants a weight beside its bias."""
    head = next(name for name, role in layers.rules.table.top.items() if role == "head")
    given = {*layers.outside, *source.aliases}
    for name, rule in layers.outside.items():
        stored_as = f"{head}.{rule.param}" if rule.role == "head" else layers.full_name(name)
        yield copy_of(name, source.tensors[name], stored_as=stored_as)
        is_embedding = rule.role == "embedding" and not any(
            n.startswith(("lm_head.", "embed_out.")) for n in given
        )
        if is_embedding:
            # The loader needs a tied head under its own name.
            yield copy_of(name, source.tensors[name], stored_as=f"{head}.weight")
    for name, first in source.aliases.items():
        yield copy_of(first, source.tensors[first], stored_as=layers.full_name(name))
