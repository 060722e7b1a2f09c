"""Models of two families, as narrow as wanted, with random weights; made where they stay."""

from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

#: Layers of a narrow model, and its width: so narrow that the host alone takes time.
LAYERS: Final = 24
NARROW: Final = 64
_HEAD: Final = 64
_COMMON: Final[dict[str, Any]] = {
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def dtype_on(device: str) -> torch.dtype:
    """The type in which models run on `cpu` or `cuda`."""
    return torch.float16 if device == "cuda" else torch.float32


def narrow(family: str, device: str) -> Any:
    """A narrow `opt` or `llama`, in the type in which models run there."""
    dtype = dtype_on(device)
    if family == "opt":
        return opt(NARROW, LAYERS, device, dtype)
    config = LlamaConfig(
        hidden_size=NARROW,
        intermediate_size=2 * NARROW,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        **_COMMON,
    )
    return _built(LlamaForCausalLM, config, device, dtype)


def opt(width: int, num_layers: int, device: str, dtype: torch.dtype) -> Any:
    """OPT of any width."""
    config = OPTConfig(
        hidden_size=width,
        ffn_dim=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, width // _HEAD),
        word_embed_proj_dim=width,
        **_COMMON,
    )
    return _built(OPTForCausalLM, config, device, dtype)


def leaves(model: torch.nn.Module) -> list[str]:
    """Names of the modules that have none inside: what the emitted plans' device maps name."""
    return [name for name, module in model.named_modules() if name and not list(module.children())]


def _built(model_class: Any, config: Any, device: str, dtype: torch.dtype) -> Any:
    """With weights small enough that nothing overflows."""
    with torch.device("meta"):
        model = model_class(config)
    model = model.to(dtype).to_empty(device=device).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = torch.ones_like(module.inv_freq, dtype=torch.float32)
    model.tie_weights()
    return model
