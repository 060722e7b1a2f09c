"""Generates with the plan in this folder: `python generate.py CHECKPOINT --prompt "Once upon a time"`.

DeepSpeed ZeRO-Inference stores the weights in host memory, on NVMe or partitioned over the GPUs, and copies
each module's weights to the GPU before it runs. Needs torch, transformers and deepspeed.
Exit status: 0 done, 3 the checkpoint does not fit the plan, or something that the plan needs is missing,
4 out of memory or of GPUs.
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

# First, because it configures torch's allocator.
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

# Warnings about torch's own functions, which DeepSpeed calls.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
os.environ.setdefault("DS_ACCELERATOR", "cpu" if ON_CPU else "cuda")
#: Partitions of fewer bytes stay in memory; so do those below the aio block size.
MIN_SWAPPED_BYTES = 2**20


def load(checkpoint: str, offload_folder: str) -> Any:
    """The model with its weights in the store, and with the plan's resident weights on the GPU."""
    join_ranks()
    if not ON_CPU:
        torch.cuda.set_device(LOCAL_RANK)
    import deepspeed

    # It logs to standard output, which is for the generated text.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Otherwise an all-reduce in shared memory is compiled at run time; gloo's is sufficient.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if ON_CPU else "nccl", verbose=False)
    atexit.register(leave_ranks)
    config = configuration(offload_folder)
    if "weight_quantization" in config:
        model = quantized(checkpoint, config)
    elif DTYPE is torch.float16 and not runs_fp16():
        # DeepSpeed refuses this key on a CPU without float16, which runs float16 weights all the same.
        del config["fp16"]
        model = partitioned(whole(checkpoint), config)
    else:
        model = partitioned_at_load(checkpoint, config)
    model = deepspeed.initialize(model=model, config=config)[0].module.eval()
    check_swapped(model, config)
    keep_resident(model)
    return model


def join_ranks() -> None:
    """Check the number of processes; give a process without a launcher the variables of a group of one."""
    if "RANK" in os.environ:
        started = os.environ["WORLD_SIZE"]
        if int(started) != NUM_RANKS:
            stop(f"the plan runs in {NUM_RANKS} processes, and {started} were started", 4)
        return
    if NUM_RANKS > 1:
        stop(f"the plan runs in {NUM_RANKS} processes; start generate.py as README.md says", 4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def leave_ranks() -> None:
    """Destroy the process group, unless it has been destroyed already."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def runs_fp16() -> bool:
    """Whether DeepSpeed accepts `fp16` on this device."""
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
    """Stop if a tool is missing that DeepSpeed needs to compile its asynchronous I/O."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import _get_build_directory

    if shutil.which("g++") is None or not AsyncIOBuilder().is_compatible(verbose=False):
        stop("weights on NVMe need DeepSpeed's async_io: install libaio-dev, g++ and ninja", 3)
    for name in ("async_io", "pin_memory"):
        lock = Path(_get_build_directory(name, verbose=False)) / "lock"
        if lock.exists():
            hint = f"{lock} exists: another process is compiling {name}, or was killed while it did"
            print(f"generate.py: {hint}; if this takes minutes, remove that file", file=sys.stderr)


def partitioned_at_load(checkpoint: str, config: dict[str, Any]) -> Any:
    """The model, partitioned tensor by tensor as it is loaded, so that it is never in memory as a whole."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    # While this object exists, transformers partitions models as it builds them; without it the whole model
    # would be copied to the GPU first.
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
        # A tensor has another shape, which loading under HfDeepSpeedConfig does not ignore.
        words = " ".join(str(error).split())
        stop(f"{checkpoint} is not a checkpoint of {PLAN['model']['name']}: {words}", 3)
    check_loaded(info, checkpoint)
    return model


def partitioned(model: Any, config: dict[str, Any]) -> Any:
    """A model that is whole in host memory, partitioned."""
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig

    swapper = None
    if config["zero_optimization"].get("offload_param", {}).get("device") == "nvme":
        from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper

        # The swapper that zero.Init creates by itself has buffers of another dtype than the weights.
        swapper = AsyncPartitionedParameterSwapper(DeepSpeedConfig(config), DTYPE)
    deepspeed.zero.Init(module=model, config_dict_or_path=config, param_swapper=swapper)
    return model


def quantized(checkpoint: str, config: dict[str, Any]) -> Any:
    """A model whose Linears are quantized first and then partitioned: DeepSpeed supports no other order."""
    from deepspeed.inference.quantization.quantization import _init_group_wise_weight_quantization

    without_zero = {name: value for name, value in config.items() if name != "zero_optimization"}
    model = _init_group_wise_weight_quantization(whole(checkpoint), without_zero)
    if not runs_fp16():
        del config["fp16"]
    return partitioned(model, config)


def check_swapped(model: Any, config: dict[str, Any]) -> None:
    """Stop if a partition that is large enough for a file is in memory, which DeepSpeed does not report."""
    offload = config["zero_optimization"].get("offload_param", {})
    if offload.get("device") != "nvme":
        return
    least = max(MIN_SWAPPED_BYTES, config["aio"]["block_size"])
    parts = [p for p in model.parameters() if p.ds_tensor.ds_numel * p.element_size() >= least]
    files = [file for file in Path(offload["nvme_path"]).rglob("*.swp") if file.stat().st_size >= least]
    mine = [file for file in files if file.parent.name == f"rank{torch.distributed.get_rank()}"]
    if len(mine) != len(parts):
        stop(f"{len(parts)} partitions should be files in {offload['nvme_path']}, and {len(mine)} are", 4)


def keep_resident(model: Any) -> None:
    """Fetch the parameters that the plan keeps on the GPU, and prevent their release.

    DeepSpeed's own persistence begins with the third forward and ends whenever modules run in another order,
    and with NVMe each kept partition occupies one of the buffers permanently.
    """
    kept = [p["module"] for p in PLAN["placements"] if p["stored_on"] == p["runs_on"]]
    ids = {id(p) for module in kept for p in model.get_submodule(module).parameters()}
    # A quantized matrix is one vector of codes, scales and minima.
    quantized_ids = {id(m.weight) for m in model.modules() if type(m).__name__.startswith("Quantized")}
    for parameter in model.parameters():
        is_vector = len(parameter.ds_shape) < 2 and id(parameter) not in quantized_ids
        # The thresholds of ds_config.json only approximate the plan's choice.
        parameter.ds_persist = is_vector or id(parameter) in ids
        if parameter.ds_persist:
            parameter.all_gather()
            parameter.partition = stay
            leave_buffer(parameter)


def stay(*_: Any, **__: Any) -> None:
    """Replaces `partition` of a resident parameter: the whole tensor stays where it is."""


def leave_buffer(parameter: Any) -> None:
    """Release the NVMe buffer of a resident parameter, and prevent that its file is read again."""
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
