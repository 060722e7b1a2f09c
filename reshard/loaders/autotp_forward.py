"""What DeepSpeed's AutoTP leaves undone in a model that it has cut: forwards that count all of its heads.

Besides torch this imports nothing, so that a folder with a script for AutoTP can hold a copy of this file.
Every family with a table was run with DeepSpeed 0.19.8 and transformers 5.23 to find what is said here.
"""

import copy
from typing import Any

import torch


def localise(model: Any, tp_size: int) -> None:
    """Let the forward of a wrapped model count this rank's heads where it counts heads.

    Args:
        model: a transformers model whose Linears AutoTP has replaced by this rank's parts of them.
        tp_size: ranks; with one, nothing is changed.
    """
    if tp_size == 1:
        return
    match model.config.model_type:
        case "bloom":
            model.transformer.register_forward_pre_hook(_with_attention_mask, with_kwargs=True)
        case "phi3":
            for layer in model.model.layers:
                layer.self_attn.config = copy.copy(layer.self_attn.config)
                layer.self_attn.config.num_attention_heads //= tp_size
        case "gpt_bigcode" if model.config.multi_query:
            for block in model.transformer.h:
                block.attn.num_key_value_groups //= tp_size


def _with_attention_mask(
    module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give a BLOOM called without a mask one of ones: only with a mask does it slice its slopes by rank."""
    tokens = keywords.get("input_ids", arguments[0] if arguments else None)
    if tokens is None:
        tokens = keywords["inputs_embeds"][..., 0]
    # The mask is the third positional argument.
    if keywords.get("attention_mask") is None and len(arguments) < 3:
        past = keywords.get("past_key_values")
        length = tokens.shape[1] + (past.get_seq_length() if past is not None else 0)
        keywords = keywords | {"attention_mask": torch.ones(tokens.shape[0], length, device=tokens.device)}
    return arguments, keywords
