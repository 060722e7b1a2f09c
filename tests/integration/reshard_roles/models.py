"""Tiny models of any architecture: the fixtures' families, and others from their default configurations."""

import copy
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers

from fixtures import tiny
from fixtures.families import FAMILIES

#: Attribute → extent, where a configuration has the attribute as a number.
_SMALL: Final = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "embed_dim": 64, "word_embed_proj_dim": 64,
    "intermediate_size": 96, "ffn_dim": 96, "d_ff": 96, "n_inner": 96, "ffn_hidden_size": 96, "dff": 96,
    "decoder_ffn_dim": 96, "encoder_ffn_dim": 96, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32, "intermediate_size_mlp": 96,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 16, "d_kv": 16, "kv_channels": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_decoder_layers": 2, "num_encoder_layers": 2,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_num_experts": 4, "moe_k": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "vocab_size": 264, "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "max_seq_len": 128,
    "sliding_window": 16, "window_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "rotary_dim": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 128,
    "mamba_n_groups": 1, "mamba_head_dim": 16, "mamba_num_heads": 8, "state_size": 8, "time_step_rank": 8,
    "ssm_state_size": 8, "n_groups": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "lru_width": 64, "attention_window_size": 16,
    "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4, "hidden_size_per_layer_input": 16,
    "num_global_key_value_heads": 2, "attention_chunk_size": 16, "dim_ff": 96, "embedding_size": 64,
}  # fmt: skip

#: What a default configuration leaves unset, or would contradict when it is shrunk.
_MORE: Final[dict[str, dict[str, Any]]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "n_routed_experts": 4},
    "dots1": {
        "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 32, "num_experts_per_tok": 2,
    },
    "glm": {"head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": [2, 2]},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip


_MOST: Final = 20_000_000


def _small(default: Any) -> dict[str, Any]:
    """Settings for a tiny model of a configuration's class."""

    def is_settable(key: str) -> bool:
        return not isinstance(getattr(type(default), key, None), property)

    def known(key: str) -> Any:
        # Some attributes differ by layer, and cannot be read of the whole.
        try:
            return getattr(default, key, None)
        except Exception:
            return None

    settings = {
        key: extent
        for key, extent in _SMALL.items()
        if is_settable(key) and (type(known(key)) is int or (key.endswith("_id") and hasattr(default, key)))
    }
    if "qk_rope_head_dim" in settings:
        # Latent attention: as many heads of keys as of queries, and rotary tables of the rotated part alone.
        settings |= {"num_key_value_heads": 4, **({"head_dim": 8} if "head_dim" in settings else {})}
    kinds = known("layer_types")
    if isinstance(kinds, list) and kinds and is_settable("layer_types"):
        chosen = list(dict.fromkeys(kinds))[:2]
        settings["layer_types"] = chosen if len(chosen) == 2 else chosen * 2
    return settings


def save(name: str, folder: Path, more: dict[str, Any] | None = None) -> str:
    """Write the tiny checkpoint called `name`, and return its auto class.

    Args:
        name: a family of the fixtures, or a model type.
        folder: to write.
        more: settings of its configuration, beside the tiny ones.

    Raises:
        Exception: whatever a configuration or a class that cannot be built raises.
    """
    if name in FAMILIES:
        family = FAMILIES[name]
        with pytest.MonkeyPatch.context() as patch:
            settings = family.settings | (more or {})
            patch.setitem(FAMILIES, name, family._replace(settings=settings))
            tiny.build(name).save_pretrained(folder)
        return family.auto_class
    default = transformers.AutoConfig.for_model(name)
    settings = _small(default)
    config = type(default)(**settings | _MORE.get(name, {}) | (more or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
        if (count := sum(p.numel() for p in empty.parameters())) > _MOST:
            raise ValueError(
                f"{count} parameters: its configuration has extents that are not made small here"
            )
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tiny._widen(model)
        for module in model.modules():
            # Loading some families makes it zero again.
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight.data[module.padding_idx] = 0
    model.eval().save_pretrained(folder)
    return "AutoModelForCausalLM"
