"""What DeepSpeed's injected blocks compute whatever the configuration says. Pure: loader and writer ask it.

With another value DeepSpeed 0.19.8 gave other tokens in silence (tests/benchmarks/kernel_injection.py);
without attention biases it failed.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from reshard.errors import UnsupportedTargetError

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

#: Families whose containers can be built without weights and whose kernels give the model's own tokens.
FAMILIES: Final = tuple(_FIXED)


def check_family(kind: str) -> None:
    """See to it that pre-shards of a family can be loaded.

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
    """Settings of a family of `FAMILIES` that its block knows by heart, with the values that it computes."""
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
