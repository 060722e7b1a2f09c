"""Pre-shards of the `deepspeed` target, loaded into DeepSpeed's inference kernels.

DeepSpeed's own loader checks nothing: a key that is missing leaves uninitialised memory behind, a
shape of another degree is split or joined again, and a pickle is executed. So the tensors of a folder are
first compared here, without their data, with what the model needs.
"""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from ..errors import DamagedFileError, InconsistentShardsError, MissingFileError
from .injected_blocks import check_computed, needed_shapes
from .pre_shards import Index, check_rank, dtype_name, open_tensors, read_index

_NEWEST_TRANSFORMERS: Final = (4, 43)


def load_kernel_injection(folder: Path, *, dtype: torch.dtype, max_out_tokens: int = 1024) -> Any:
    """The DeepSpeed inference engine of `folder`, ready to generate, on this rank's GPU.

    Call it in every process of a job that `torchrun` or the `deepspeed` launcher started. A rank reads its
    own blocks and the tensors that are whole on every rank, and no others. One model a process: DeepSpeed
    counts layers in a global.

    Args:
        folder: what the `deepspeed` target wrote: `config.json`, `ds_inference_config.json` and the files
            that it names.
        dtype: to compute in; the shards must have been written in it.
        max_out_tokens: prompt and generated tokens together. DeepSpeed reserves its KV cache for so many,
            and does not notice when more are generated.

    Returns:
        deepspeed.InferenceEngine, whose `generate` and `forward` are the model's, in `dtype`.

    Raises:
        ImportError: transformers is newer than 4.43, whose models DeepSpeed's kernels no longer fit.
        MissingFileError: `folder` lacks a file that it needs.
        DamagedFileError: a file contradicts its format.
        InconsistentShardsError: the shards are incomplete, or of another degree, dtype or model.
        UnsupportedTargetError: the kernels do not compute this model.
    """
    index = read_index(folder)
    tp_rank, num_processes = _place()
    if index.tp_size != num_processes:
        raise InconsistentShardsError(
            f"{folder} is cut for tp_size={index.tp_size}, but the number of processes is {num_processes}; "
            f"start {index.tp_size}, or cut it again with tp_size={num_processes} and format='deepspeed'"
        )
    if index.dtype != dtype_name(dtype):
        raise InconsistentShardsError(
            f"{folder} is written in {index.dtype}, but {dtype_name(dtype)} was asked for; load it in "
            f"{index.dtype}, or write it again with dtype='{dtype_name(dtype)}'"
        )
    _check_transformers()
    model = _meta_model(folder, dtype, max_out_tokens)
    check_rank(folder, index, tp_rank, needed_shapes(model, index.tp_size), dtype)
    engine = _inject(model, folder, index, dtype=dtype, max_out_tokens=max_out_tokens)
    if dtype != torch.float16:
        _restore_positions(engine.module, folder, index.files_of(tp_rank))
    return engine


def _place() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _check_transformers() -> None:
    release = version("transformers")
    major, minor = (int(part) for part in release.split(".")[:2])
    if (major, minor) > _NEWEST_TRANSFORMERS:
        raise ImportError(
            f"transformers {release} is installed, and DeepSpeed's kernels fit the models of 4.43 and older; "
            "install 4.43.4 in an environment of its own, or load per-rank safetensors with AutoTP"
        )


def _meta_model(folder: Path, dtype: torch.dtype, max_out_tokens: int) -> Any:
    """The model of `config.json` with no weights, refused where the kernels would compute another one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; copy it from the checkpoint that was cut")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise DamagedFileError(f"{path} is no configuration of a known model: {error}") from error
    # transformers 5 writes the rotary numbers under one key, which 4.43 does not read.
    rope = getattr(config, "rope_parameters", None) or {}
    for old, new in (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
        if new in rope:
            setattr(config, old, rope[new])
    check_computed(config, max_out_tokens)
    # The kernels read a mask that is spelled out; with sdpa, transformers leaves a causal one away.
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, torch_dtype=dtype, attn_implementation="eager").eval()


def _inject(model: Any, folder: Path, index: Index, *, dtype: torch.dtype, max_out_tokens: int) -> Any:
    """The engine of `model`, whose blocks are replaced and filled from `folder`."""
    import deepspeed

    engine = deepspeed.init_inference(
        model,
        tensor_parallel={"tp_size": index.tp_size},
        replace_with_kernel_inject=True,
        # Not the file's path: a `base_dir` inside it would take precedence, and may name a folder elsewhere.
        checkpoint=msgspec.to_builtins(index),
        base_dir=str(folder),
        dtype=dtype,
        max_out_tokens=max_out_tokens,
    )
    # DeepSpeed makes the head anew in float32 and copies the shard's values into it.
    engine.module.to(dtype)
    return engine


def _restore_positions(module: torch.nn.Module, folder: Path, files: list[str]) -> None:
    """Undo that DeepSpeed rounds OPT's positions to float16 whatever the dtype."""
    for file in files:
        for key, tensor in open_tensors(folder / file).items():
            if key.endswith(".embed_positions.weight"):
                with torch.no_grad():
                    module.get_parameter(key).copy_(tensor)
