"""Which models DeepSpeed's injected blocks accept, and the settings that they ignore. Pure.

With another value DeepSpeed 0.19.8 generated other tokens without an error
(tests/benchmarks/kernel_injection.py); without attention biases it failed.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from reshard.errors import UnsupportedTargetError


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Where a family keeps what the injected block needs: names of modules, relative to one block.

    Attributes:
        norm: the norm whose result attention reads.
        qkv: attention's projection, or its query's where there are three.
        out: attention's output projection.
        mlp_norm: the norm whose result the MLP reads; None where it reads `norm`'s.
        inter: the MLP's first Linear.
        output: its second.
    """

    norm: str
    qkv: str
    out: str
    mlp_norm: str | None
    inter: str
    output: str


_GELU: Final = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_FIXED: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "bloom": {"apply_residual_connection_post_layernorm": (False,)},
    "gpt_neo": {"activation_function": _GELU},
    "gpt_neox": {
        "use_parallel_residual": (True,),
        "rotary_emb_base": (10000,),
        "hidden_act": _GELU,
        "attention_bias": (True,),
    },
    "gptj": {"activation_function": _GELU},
    "opt": {"activation_function": ("relu", "gelu", "gelu_new"), "do_layer_norm_before": (True,)},
}

#: Model type → where its modules are. Read in DeepSpeed 0.19.8, `module_inject/containers`.
BLOCKS: Final[dict[str, Block]] = {
    "bloom": Block(
        norm="input_layernorm",
        qkv="self_attention.query_key_value",
        out="self_attention.dense",
        mlp_norm="post_attention_layernorm",
        inter="mlp.dense_h_to_4h",
        output="mlp.dense_4h_to_h",
    ),
    "gpt_neo": Block(
        norm="ln_1",
        qkv="attn.attention.q_proj",
        out="attn.attention.out_proj",
        mlp_norm="ln_2",
        inter="mlp.c_fc",
        output="mlp.c_proj",
    ),
    "gpt_neox": Block(
        norm="input_layernorm",
        qkv="attention.query_key_value",
        out="attention.dense",
        mlp_norm="post_attention_layernorm",
        inter="mlp.dense_h_to_4h",
        output="mlp.dense_4h_to_h",
    ),
    "gptj": Block(
        norm="ln_1",
        qkv="attn.q_proj",
        out="attn.out_proj",
        mlp_norm=None,
        inter="mlp.fc_in",
        output="mlp.fc_out",
    ),
    "opt": Block(
        norm="self_attn_layer_norm",
        qkv="self_attn.q_proj",
        out="self_attn.out_proj",
        mlp_norm="final_layer_norm",
        inter="fc1",
        output="fc2",
    ),
}

#: Families whose containers can be built without weights and whose kernels give the model's own tokens.
FAMILIES: Final = tuple(_FIXED)


def check_family(kind: str) -> None:
    """Check that pre-shards of a family can be loaded.

    Args:
        kind: the configuration's `model_type`.

    Raises:
        UnsupportedTargetError: they cannot.
    """
    if kind not in FAMILIES:
        raise UnsupportedTargetError(
            f"DeepSpeed's kernel injection cannot load {kind!r} from pre-shards; it can {', '.join(FAMILIES)}"
        )


def computed_settings(kind: str) -> Mapping[str, tuple[Any, ...]]:
    """Settings that the block of a family of `FAMILIES` has as constants, and their values there."""
    return _FIXED[kind]


def ignored_setting(config: Mapping[str, Any]) -> str | None:
    """A sentence about a setting that the family's block ignores; None where it computes what is configured.

    Args:
        config: a configuration as a dictionary, of one of `FAMILIES`, as any transformers release writes it.
    """
    kind = config["model_type"]
    rope = config.get("rope_parameters") or {}
    for key, allowed in _FIXED[kind].items():
        # transformers 5 keeps the base of the rotary embedding among others; an old file has its own key.
        newer = rope.get("rope_theta", allowed[0]) if key == "rotary_emb_base" else allowed[0]
        value = next((v for v in (config.get(key, allowed[0]), newer) if v not in allowed), None)
        if value is not None:
            return (
                f"the injected {kind} block ignores {key} = {json.dumps(value)} and computes "
                f"{' or '.join(map(json.dumps, allowed))}. Use per-rank safetensors and AutoTP"
            )
    return None
