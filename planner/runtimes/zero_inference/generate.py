"""Generates with the plan in this folder: `python generate.py CHECKPOINT --prompt "Once upon a time"`.

DeepSpeed ZeRO-Inference keeps the weights in host memory, on NVMe or cut over the GPUs, and brings each
module's to where it runs. Needs torch, transformers and deepspeed. Exit status: 0 done, 3 the checkpoint does
not fit the plan, or something is missing that the plan needs, 4 out of memory or of GPUs.
"""

import atexit
import logging
import os
import shutil
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

# First, because it sets torch's allocator up.
from generation import (
    DTYPE,
    LOCAL_RANK,
    NUM_RANKS,
    ON_CPU,
    PLAN,
    auto_class,
    check_loaded,
    main,
    read_json,
    stop,
)

# isort: split
import torch

# Of torch's own functions, which DeepSpeed calls.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
os.environ.setdefault("DS_ACCELERATOR", "cpu" if ON_CPU else "cuda")
#: Partitions of fewer bytes stay in memory; so do those below the aio block size.
MIN_SWAPPED_BYTES = 2**20


def load(checkpoint: str, offload_folder: str) -> Any:
    """The model, its weights in the store and what the plan keeps marked as such."""
    join_ranks()
    if not ON_CPU:
        torch.cuda.set_device(LOCAL_RANK)
    import deepspeed

    # It would log to the output, where the generated text goes.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # The CPU's own all-reduce would be compiled first, and gloo's serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if ON_CPU else "nccl", verbose=False)
    atexit.register(leave_ranks)
    config = configuration(offload_folder)
    if "weight_quantization" in config:
        model = quantized(checkpoint, config)
    elif DTYPE is torch.float16 and not runs_fp16():
        # Only processors refuse it, and only in the configuration.
        del config["fp16"]
        model = partitioned(whole(checkpoint), config)
    else:
        model = built_in_parts(checkpoint, config)
    model = deepspeed.initialize(model=model, config=config)[0].module.eval()
    check_swapped(model, config)
    keep_resident(model)
    return model


def join_ranks() -> None:
    """A process that nobody launched is a group of its own."""
    if "RANK" in os.environ:
        found = os.environ["WORLD_SIZE"]
        if int(found) != NUM_RANKS:
            stop(f"the plan runs in {NUM_RANKS} processes, and {found} were started", 4)
        return
    if NUM_RANKS > 1:
        stop(f"the plan runs in {NUM_RANKS} processes; start generate.py as README.md says", 4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def leave_ranks() -> None:
    """At the end, unless that has been done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def runs_fp16() -> bool:
    """Whether DeepSpeed takes `fp16` on this device."""
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


def configuration(offload_folder: str) -> dict[str, Any]:
    """ds_config.json, with the folder of swap files in it."""
    config: dict[str, Any] = read_json("ds_config.json")
    offload = config["zero_optimization"].get("offload_param", {})
    if offload.get("device") == "nvme":
        offload["nvme_path"] = offload_folder
        check_async_io()
    return config


def check_async_io() -> None:
    """Stop with what is missing, before DeepSpeed compiles what reads and writes the files."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import _get_build_directory

    if shutil.which("g++") is None or not AsyncIOBuilder().is_compatible(verbose=False):
        stop("weights on NVMe need DeepSpeed's async_io: install libaio-dev, g++ and ninja", 3)
    for name in ("async_io", "pin_memory"):
        lock = Path(_get_build_directory(name, verbose=False)) / "lock"
        if lock.exists():
            hint = f"{lock} is there: another process compiles {name} now, or was killed while it did"
            print(f"generate.py: {hint}; if this goes on for minutes, remove that file", file=sys.stderr)


def built_in_parts(checkpoint: str, config: dict[str, Any]) -> Any:
    """From the checkpoint straight into the store, never whole."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    # While it lives, models are built cut into parts; without it the whole model would go to the GPU first.
    scope = HfDeepSpeedConfig(config)
    model = whole(checkpoint)
    model.deepspeed_scope = scope
    return model


def whole(checkpoint: str) -> Any:
    """The model as transformers loads it."""
    try:
        model, info = auto_class().from_pretrained(
            checkpoint, dtype=DTYPE, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except RuntimeError as error:
        # Tensors of other shapes: this way of loading cannot ignore them.
        words = " ".join(str(error).split())
        stop(f"{checkpoint} is not a checkpoint of {PLAN['model']['name']}: {words}", 3)
    check_loaded(info, checkpoint)
    return model


def partitioned(model: Any, config: dict[str, Any]) -> Any:
    """A whole model cut into parts."""
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig

    swapper = None
    if config["zero_optimization"].get("offload_param", {}).get("device") == "nvme":
        from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper

        # Its buffers would be of another type than the weights.
        swapper = AsyncPartitionedParameterSwapper(DeepSpeedConfig(config), DTYPE)
    deepspeed.zero.Init(module=model, config_dict_or_path=config, param_swapper=swapper)
    return model


def quantized(checkpoint: str, config: dict[str, Any]) -> Any:
    """A model whose Linears are quantized first and cut into parts then: no other order works."""
    from deepspeed.inference.quantization.quantization import _init_group_wise_weight_quantization

    alone = {name: value for name, value in config.items() if name != "zero_optimization"}
    model = _init_group_wise_weight_quantization(whole(checkpoint), alone)
    if not runs_fp16():
        del config["fp16"]
    return partitioned(model, config)


def check_swapped(model: Any, config: dict[str, Any]) -> None:
    """Every part that is large enough must be a file: otherwise it would be in memory, and nobody told."""
    offload = config["zero_optimization"].get("offload_param", {})
    if offload.get("device") != "nvme":
        return
    least = max(MIN_SWAPPED_BYTES, config["aio"]["block_size"])
    parts = [p for p in model.parameters() if p.ds_tensor.ds_numel * p.element_size() >= least]
    files = [file for file in Path(offload["nvme_path"]).rglob("*.swp") if file.stat().st_size >= least]
    mine = [file for file in files if file.parent.name == f"rank{torch.distributed.get_rank()}"]
    if len(mine) != len(parts):
        stop(f"{len(parts)} parts of weights should be in {offload['nvme_path']}, and {len(mine)} are", 4)


def keep_resident(model: Any) -> None:
    """Fetch what the plan keeps, and let nothing release it.

    DeepSpeed's own persistence begins with the third forward and ends whenever modules run in another order,
    and on NVMe each kept part holds one of the buffers for ever.
    """
    kept = [p["module"] for p in PLAN["placements"] if p["stored_on"] == p["runs_on"]]
    ids = {id(p) for module in kept for p in model.get_submodule(module).parameters()}
    # Codes of a quantized matrix are one long vector, scales and all.
    coded = {id(m.weight) for m in model.modules() if type(m).__name__.startswith("Quantized")}
    for parameter in model.parameters():
        is_vector = len(parameter.ds_shape) < 2 and id(parameter) not in coded
        # What the thresholds of ds_config.json keep is near the plan's choice, and is not it.
        parameter.ds_persist = is_vector or id(parameter) in ids
        if parameter.ds_persist:
            parameter.all_gather()
            parameter.partition = stay
            leave_buffer(parameter)


def stay(*_: Any, **__: Any) -> None:
    """In the place of a parameter's `partition`: its whole stays where it is."""


def leave_buffer(parameter: Any) -> None:
    """Give the NVMe buffer back that a parameter came through, and have nobody read its file again."""
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import PartitionedParamStatus

    part = parameter.ds_tensor
    if part.final_location is None:
        return
    if parameter.data.data_ptr() == part.data_ptr():
        parameter.data = parameter.data.clone()
    parameter.nvme_swapper.remove_partition_and_release_buffers([parameter])
    part.status, part.final_location = PartitionedParamStatus.AVAILABLE, None


if __name__ == "__main__":
    main(load, __doc__)
