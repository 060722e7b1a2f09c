"""Megatron's names: three namings, brought to mcore's with the norms inside the Linears. Pure."""

import re
from typing import Final

from reshard.architectures.schema import Role

EMBEDDING: Final = "embedding.word_embeddings"
POSITION: Final = "embedding.position_embeddings"
FINAL_NORM: Final = "decoder.final_layernorm"
HEAD: Final = "output_layer"
LAYER: Final = "decoder.layers.{}."

#: Role → what stands between the layer's prefix and `weight` or `bias`.
NORMS: Final[dict[Role, str]] = {
    "input_norm": "self_attention.linear_qkv.layer_norm_",
    "post_attention_norm": "mlp.linear_fc1.layer_norm_",
}

#: Names the newest of several iterations.
LATEST_FILE: Final = "latest_checkpointed_iteration.txt"

FILE: Final = re.compile(
    r"(?:(?P<iteration>iter_\d{7}|release)/)?mp_rank_(?P<tp>\d{2})(?:_(?P<pp>\d{3}))?(?P<ep>_\d{3})?/"
    r"(?:model_optim_rng|model_rng)\.pt"
)

_LAYER: Final = re.compile(r"(?:encoder|transformer|decoder)\.layers\.(\d+)\.(.+)")
#: (legacy or local name, mcore's): the last part is the parameter.
_INSIDE: Final = (
    (re.compile(r"input_layernorm\.(\w+)"), r"self_attention.linear_qkv.layer_norm_\1"),
    (re.compile(r"(?:self_)?attention\.query_key_value\.(\w+)"), r"self_attention.linear_qkv.\1"),
    (re.compile(r"(?:self_)?attention\.dense\.(\w+)"), r"self_attention.linear_proj.\1"),
    (re.compile(r"(?:post_attention|pre_mlp)_layernorm\.(\w+)"), r"mlp.linear_fc1.layer_norm_\1"),
    (re.compile(r"mlp\.dense_h_to_4h\.(\w+)"), r"mlp.linear_fc1.\1"),
    (re.compile(r"mlp\.dense_4h_to_h\.(\w+)"), r"mlp.linear_fc2.\1"),
)
_OUTSIDE: Final = (
    (re.compile(r"(?:encoder|transformer|decoder)\.final_(?:layer)?norm\.(\w+)"), rf"{FINAL_NORM}.\1"),
    (re.compile(r"word_embeddings_for_head\.weight"), f"{HEAD}.weight"),
)
#: State of the runtime, not of the model.
_NOT_WEIGHTS: Final = ("_extra_state", "inv_freq")


def evidence(names: tuple[str, ...]) -> tuple[str, ...]:
    """The files that are a Megatron checkpoint's."""
    return tuple(n for n in names if FILE.fullmatch(n))


def canonical(key: str) -> tuple[int | None, str] | None:
    """A key of any naming as the layer's number in its stage, and mcore's name with `{}` for that number.

    None for what is no weight.
    """
    if key.endswith(_NOT_WEIGHTS):
        return None
    plain = key.removeprefix("module.").removeprefix("language_model.")
    match = _LAYER.fullmatch(plain)
    if match is None:
        for pattern, name in _OUTSIDE:
            if pattern.fullmatch(plain):
                return None, pattern.sub(name, plain)
        return None, plain
    inside = match[2]
    for pattern, name in _INSIDE:
        if pattern.fullmatch(inside):
            inside = pattern.sub(name, inside)
            break
    return int(match[1]), LAYER + inside
