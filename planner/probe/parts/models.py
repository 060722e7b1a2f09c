"""Models of two families and any width, with random weights, created directly on their device."""

from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

#: Layers and width of a narrow model: so narrow that the host's overhead dominates the time.
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
    """The dtype in which models run on `cpu` or `cuda`."""
    return torch.float16 if device == "cuda" else torch.float32


def narrow(family: str, device: str) -> Any:
    """A narrow `opt` or `llama` model on `cpu` or `cuda`, in the dtype of `dtype_on`."""
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
    """An OPT model.

    Args:
        width: hidden size; with at least 64 a multiple of 64, the size of a head.
        num_layers: number of layers.
        device: `cpu` or `cuda`.
        dtype: of the weights.
    """
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
    """Names of the modules without submodules, as in the device maps of emitted plans."""
    return [name for name, module in model.named_modules() if name and not list(module.children())]


def _built(model_class: Any, config: Any, device: str, dtype: torch.dtype) -> Any:
    """Build a model with random weights that are small enough to avoid overflow."""
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
