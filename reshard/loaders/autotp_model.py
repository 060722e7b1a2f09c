"""The model that AutoTP wraps: described as its shards are cut, and built without weights.

Every family with a table was run with DeepSpeed 0.19.8 and transformers 5.23 to find what is said here.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn

from ..errors import DamagedFileError, UnsupportedTargetError


def configuration(folder: Path, tp_size: int) -> Any:
    """The configuration by which AutoTP cuts as the shards are cut.

    Raises:
        DamagedFileError: no `config.json`, or none that transformers can read.
        UnsupportedTargetError: a model that cannot run under AutoTP at this degree.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{folder} has no usable config.json: {error}") from error
    if tp_size == 1:
        return config
    if reason := _why_not(config, tp_size):
        raise UnsupportedTargetError(
            f"DeepSpeed AutoTP cannot run {config.model_type} at tp_size={tp_size}: {reason}"
        )
    _share_kv_heads(config, tp_size)
    return config


def _why_not(config: Any, tp_size: int) -> str | None:
    heads = config.get_text_config().num_attention_heads
    match config.model_type:
        case "gpt2":
            return "DeepSpeed has no policy for its Conv1D; use the kernel injection"
        case "falcon" if not config.new_decoder_architecture:
            return "only the layout of the new decoder is cut by heads"
        case "codegen" if heads % (4 * tp_size):
            return f"it has {heads} heads, and needs a multiple of {4 * tp_size}"
    if heads % tp_size:
        return f"it has {heads} attention heads; use a degree that divides {heads}"
    return None


def _share_kv_heads(config: Any, tp_size: int) -> None:
    """Describe a model whose every rank has KV heads of its own. Left alone, some ranks get no attention.

    A rank with a copy of a KV head computes what it would in a model that has this head several times.
    """
    if config.model_type == "gpt_bigcode":
        # AutoTP cuts the queries by this number and keeps the one KV head whole, under every name of it.
        config.num_key_value_heads = config.n_head
        return
    name = "num_kv_heads" if config.model_type == "falcon" else "num_key_value_heads"
    kv_heads = getattr(config, name, None)
    if kv_heads and kv_heads < tp_size and tp_size % kv_heads == 0:
        setattr(config, name, tp_size)


def build(config: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The model without weights, but with its buffers, which are computed and not stored.

    Args:
        config: the model's, as `configuration` returns it.
        folder: may hold a `generation_config.json`.
        dtype: of the parameters.

    Raises:
        DamagedFileError: a configuration without a class of transformers.
    """
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise DamagedFileError(
            f"{folder / 'config.json'} names no model class of transformers {transformers.__version__} under "
            f"`architectures`: {config.architectures}"
        )
    with init_empty_weights(include_buffers=False):
        model = kind._from_config(config, dtype=dtype)
    for module in _modules_of_blocks(model):
        # AutoTP copies an embedding in a block (T5's relative bias) by value, so it needs one.
        if isinstance(module, nn.Embedding):
            module.to_empty(device="cpu")
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def _modules_of_blocks(model: nn.Module) -> list[nn.Module]:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [module for blocks in lists for module in blocks.modules()]
