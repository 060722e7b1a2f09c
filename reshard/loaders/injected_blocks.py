"""What DeepSpeed's injected blocks hold and compute, by family.

A block is replaced by one module with names of its own. Its two-dimensional tensors are transposed,
`[in, out]`; its row-parallel biases are whole on every rank. Read in DeepSpeed 0.19.8,
`module_inject/containers`.
"""

from collections.abc import Iterator
from typing import Any

import torch

from ..errors import UnsupportedTargetError
from ..formats.injected import BLOCKS, ignored_setting


def check_computed(config: Any, max_out_tokens: int) -> None:
    """Refuse a model whose tokens the injected blocks would change.

    Args:
        config: the model's transformers configuration.
        max_out_tokens: the longest sequence, prompt and generated tokens together.

    Raises:
        UnsupportedTargetError: the family has no loadable block, or a setting that the block ignores.
    """
    if config.model_type not in BLOCKS:
        raise UnsupportedTargetError(
            f"kernel injection does not load {config.model_type!r} from pre-shards; it loads "
            f"{', '.join(sorted(BLOCKS))}. Use per-rank safetensors and AutoTP"
        )
    ignored = ignored_setting({"model_type": config.model_type, **config.to_dict()})
    if ignored is not None:
        raise UnsupportedTargetError(ignored)
    _check_window(config, max_out_tokens)


def _check_window(config: Any, max_out_tokens: int) -> None:
    """Keep local attention inside its window.

    When it generates, the kernel places the window by the number of keys where the model places it by the
    query's position (DeepSpeed 0.19.8, `csrc/transformer/inference/csrc/softmax.cu`, `real_seq_id`). Seen on
    a GPU with a window of 20 tokens: logits alike up to 23 tokens, and 2 of 13 apart at 24.
    """
    is_local = "local" in getattr(config, "attention_layers", ())
    if is_local and max_out_tokens >= config.window_size:
        raise UnsupportedTargetError(
            f"DeepSpeed's kernel misplaces local attention's window of {config.window_size} tokens once a "
            f"sequence fills it, and max_out_tokens is {max_out_tokens}; load with max_out_tokens="
            f"{config.window_size - 1}, or use per-rank safetensors and AutoTP"
        )


def needed_shapes(model: Any, tp_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that one rank's files must hold, by key.

    Args:
        model: the transformers model before injection; meta tensors will do.
        tp_size: ranks.

    Returns:
        The injected blocks' keys at this degree; all else is whole and under the model's own names.

    Raises:
        UnsupportedTargetError: the blocks cannot be cut so, or lack the extents that injection assumes.
    """
    prefix, layers = next(
        (name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)
    )
    needed = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.startswith(f"{prefix}.")
    }
    for number, layer in enumerate(layers):
        for key, shape in _block_shapes(layer, model.config, tp_size):
            needed[f"{prefix}.{number}.{key}"] = shape
    return needed


def _block_shapes(layer: Any, config: Any, tp_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of one injected block. A bias that the model lacks has no key."""
    block = BLOCKS[config.model_type]
    hidden = config.hidden_size
    inter = layer.get_submodule(block.inter).weight.shape[0]
    if config.num_attention_heads % tp_size or inter != 4 * hidden:
        raise UnsupportedTargetError(
            "an injected block needs a number of heads that tp_size divides and an MLP of 4 x hidden; the "
            f"model has {config.num_attention_heads} heads at tp_size {tp_size}, hidden {hidden}, MLP {inter}"
        )
    shapes = (
        (block.norm, "norm_", (hidden,), (hidden,)),
        (block.qkv, "attention.attn_qkv", (hidden, 3 * hidden // tp_size), (3 * hidden // tp_size,)),
        (block.out, "attention.attn_o", (hidden // tp_size, hidden), (hidden,)),
        (block.mlp_norm, "mlp.attn_n", (hidden,), (hidden,)),
        (block.inter, "mlp.inter_", (hidden, inter // tp_size), (inter // tp_size,)),
        (block.output, "mlp.output_", (inter // tp_size, hidden), (hidden,)),
    )
    for module, key, weight, bias in shapes:
        if module is not None:
            yield f"{key}w", weight
            if layer.get_submodule(module).bias is not None:
                yield f"{key}b", bias
