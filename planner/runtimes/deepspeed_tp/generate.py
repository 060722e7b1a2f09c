"""Generates with the plan in this folder: `python generate.py CHECKPOINT --prompt "Once upon a time"`.

DeepSpeed shards the Linears of every block over the plan's ranks, which this script starts. CHECKPOINT is a
Hugging Face folder or hub id, or what `reshard CHECKPOINT --tp RANKS` wrote; then a rank reads its own file.
Needs torch, transformers, accelerate, deepspeed and safetensors.
Exit status: 0 done, 3 the checkpoint does not fit the plan, 4 out of memory or of GPUs.
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

# First, because it configures torch's allocator.
from generation import (
    DTYPE,
    LOCAL_RANK,
    NUM_RANKS,
    ON_CPU,
    RANK,
    auto_class,
    check_loaded,
    main,
    read_json,
    stop,
)

# isort: split
if ON_CPU:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import transformers
from accelerate import init_empty_weights
from autotp_forward import localise
from deepspeed.accelerator import get_accelerator
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

CONFIG = read_json("inference_config.json")
SHARD = re.compile(r"model-rank-(\d+)-of-(\d+)(?:-part-\d+-of-\d+)?\.safetensors")


def load(checkpoint: str, offload_folder: str) -> Any:
    """This rank's part of the model, on its device."""
    shards = own_shards(Path(checkpoint))
    join()
    model = without_weights(checkpoint) if shards else with_weights(checkpoint)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    module = cut(model)
    if shards:
        fill(module, shards)
    # DeepSpeed casts rotary tables and masks, and leaves those of a model without weights uninitialized.
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        parent = module.get_submodule(owner)
        setattr(parent, leaf, buffer.to(parent.get_buffer(leaf).device))
    localise(module, NUM_RANKS)
    return module.eval()


def join() -> None:
    """Join the process group of all ranks."""
    if ON_CPU:
        # Otherwise an all-reduce in shared memory is compiled at run time; gloo's is sufficient.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if RANK:
        transformers.utils.logging.disable_progress_bar()
    deepspeed.init_distributed()
    # Before the first collective, or every rank would use the first GPU for it.
    get_accelerator().set_device(LOCAL_RANK)


def with_weights(checkpoint: str) -> Any:
    """The whole model on the host.

    A checkpoint in the plan's dtype stays in memory-mapped files, of which a rank reads only what it keeps.
    """
    model, info = auto_class().from_pretrained(
        checkpoint, dtype=DTYPE, output_loading_info=True, ignore_mismatched_sizes=True
    )
    check_loaded(info, checkpoint)
    return model


def without_weights(checkpoint: str) -> Any:
    """The model with its buffers, which are computed and not stored, and parameters on the meta device."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    with init_empty_weights(include_buffers=False):
        model = auto_class().from_config(config, dtype=DTYPE)
    for blocks in (module for module in model.modules() if isinstance(module, torch.nn.ModuleList)):
        for module in blocks.modules():
            # DeepSpeed copies an embedding in a block (T5's relative bias) by value, so it needs one.
            if isinstance(module, torch.nn.Embedding):
                module.to_empty(device="cpu")
    if (Path(checkpoint) / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(checkpoint)
    return model


def cut(model: Any) -> Any:
    """Have DeepSpeed replace the Linears by this rank's parts of them."""
    settings = {**CONFIG, "dtype": DTYPE}
    rows = settings.pop("injection_policy", {})
    if rows:
        classes = {type(module).__name__: type(module) for module in model.modules()}
        settings["injection_policy"] = {classes[name]: tuple(rows[name]) for name in rows}
    if model.config.model_type == "gpt_bigcode":
        # DeepSpeed cuts the queries by this number; it never cuts keys and values.
        model.config.num_key_value_heads = model.config.n_head
    with contextlib.redirect_stdout(sys.stderr):
        return deepspeed.init_inference(model, **settings).module


def own_shards(folder: Path) -> list[Path]:
    """This rank's files of a pre-sharded checkpoint; none for any other."""
    if not folder.is_dir():
        return []
    matches = {path: SHARD.fullmatch(path.name) for path in sorted(folder.iterdir())}
    ranks = {path: (int(match[1]), int(match[2])) for path, match in matches.items() if match}
    advice = f"cut the checkpoint with: reshard CHECKPOINT --tp {NUM_RANKS}"
    if not ranks:
        for pattern, runtime in (("ds_inference_config.json", "kernels"), ("shard-*", "transformers")):
            if any(folder.glob(pattern)):
                stop(f"{folder} is cut for {runtime}, which is not what this plan runs; {advice}", 3)
        return []
    degrees = sorted({degree for _, degree in ranks.values()})
    if degrees != [NUM_RANKS]:
        stop(f"{folder} is cut for {' and '.join(map(str, degrees))} ranks, not {NUM_RANKS}; {advice}", 3)
    mine = [path for path, (rank, _) in ranks.items() if rank == RANK]
    if not mine:
        stop(f"{folder} lacks the shard of rank {RANK} of {NUM_RANKS}; {advice}", 3)
    return mine


def fill(module: Any, shards: list[Path]) -> None:
    """Copy this rank's tensors from its files to the model's parameters."""
    wanted = module.state_dict(keep_vars=True)
    filled = set()
    for path in shards:
        with safe_open(path, framework="pt") as file:
            check_account(path, file.metadata() or {})
            for stored in file.keys():  # noqa: SIM118
                name = name_in(module, stored, wanted)
                if name not in wanted:
                    continue  # a buffer that older releases stored
                tensor = file.get_tensor(stored)
                if tensor.shape != wanted[name].shape:
                    shape, needed = list(tensor.shape), list(wanted[name].shape)
                    stop(f"{path}: {stored} has the shape {shape}, and DeepSpeed cuts it to {needed}", 3)
                with torch.no_grad():
                    wanted[name].copy_(tensor)
                filled.add(name)
    tied = {name: of for name, of in module.all_tied_weights_keys.items() if name not in filled}
    missing = sorted(wanted.keys() - filled - tied.keys())
    if missing:
        stop(f"the shard of rank {RANK} in {shards[0].parent} lacks {', '.join(missing[:3])}", 3)
    for name, of in tied.items():
        tie(module, name, wanted[of])


def check_account(path: Path, metadata: dict[str, str]) -> None:
    """Stop if a file's metadata says that it is another rank's, or that it holds quantized weights."""
    account = json.loads(metadata.get("reshard", "{}"))
    if (account.get("tp_rank"), account.get("tp_size")) != (RANK, NUM_RANKS):
        told = f"rank {account.get('tp_rank')} of {account.get('tp_size')}"
        stop(f"{path} says that it is of {told}, not of rank {RANK} of {NUM_RANKS}", 3)
    if account.get("recipe"):
        stop(f"{path} holds quantized weights, which DeepSpeed would read as plain ones; dequantize them", 3)


def name_in(model: Any, stored: str, own: dict[str, Any]) -> str:
    """A stored tensor's name in the model: transformers renames some as it loads them.

    Args:
        model: the model.
        stored: the tensor's name in the file.
        own: the model's state dict.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    name: str = rename_source_key(stored, renamings, converters, model.base_model_prefix, own)[0]
    return name


def tie(module: Any, name: str, source: torch.Tensor) -> None:
    """Fill a parameter that is not stored from the one that it is tied to.

    Args:
        module: the model.
        name: the parameter's full name.
        source: the parameter that it is tied to; of an embedding a cut head takes this rank's columns.
    """
    owner, _, leaf = name.rpartition(".")
    target = module.get_parameter(name)
    if target.shape == source.shape:
        module.get_submodule(owner).register_parameter(leaf, source)
        return
    width, longer = divmod(source.shape[1], NUM_RANKS)
    with torch.no_grad():
        target.copy_(source.narrow(1, RANK * width + min(RANK, longer), target.shape[1]))


if __name__ == "__main__":
    main(load, __doc__)
