"""The DeepSpeed configuration of a plan. Pure."""

from typing import Any, Final

from planner.graph.schema import ModuleGraph
from planner.runtimes.zero_inference.parameters import parameters, resident
from planner.runtimes.zero_inference.quantization import packed, weight_quantization
from planner.runtimes.zero_inference.sizes import Sizes, buffer_elements, sizes_for
from planner.schema.plan import Plan

#: Placeholder for the folder of swap files; the script replaces it.
NVME_PATH: Final = "OFFLOAD_FOLDER"

#: Settings of asynchronous I/O: NVMe reaches its rate with a few dozen large requests in flight.
_AIO: Final = {
    "block_size": 2**20,
    "queue_depth": 32,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": True,
}

_LARGEST_THREADS: Final = 8


def ds_config(plan: Plan, graph: ModuleGraph) -> dict[str, Any]:
    """A complete configuration, whose thresholds approximate the plan's residency.

    Args:
        plan: a plan of the runtime `zero-inference`.
        graph: the model's graph.

    Raises:
        InvalidInputError: weights are to be quantized and no Linear can be.
    """
    held = packed(graph, plan.weight_bits)
    sizes = sizes_for(held)
    device = store_of(plan)
    zero: dict[str, Any] = {"stage": 3}
    if device != "none":
        zero["offload_param"] = _offload(plan, sizes, device)
    zero |= _thresholds(plan, held) | {
        "stage3_prefetch_bucket_size": sizes.prefetch_bucket,
        "stage3_max_live_parameters": sizes.max_live,
        # A tied embedding is fetched again for the head, as the runtime model prices it.
        "stage3_max_reuse_distance": 0,
        # DeepSpeed's own Linear rounds differently from torch's.
        "memory_efficient_linear": False,
    }
    per_rank = -(-plan.workload.batch_size // plan.num_streams)
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": per_rank, "zero_optimization": zero}
    if plan.workload.dtype == "float16":
        config["fp16"] = {"enabled": True}
    if plan.workload.dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
    if device == "nvme":
        config["aio"] = _AIO | {"intra_op_parallelism": _threads(plan)}
    if plan.weight_bits is not None:
        config["weight_quantization"] = weight_quantization(graph, plan.weight_bits)
    return config


def store_of(plan: Plan) -> str:
    """DeepSpeed's name for where the partitions are stored: `cpu`, `nvme` or `none` (on the GPUs)."""
    places = {p.stored_on for p in plan.placements if p.stored_on != p.runs_on}
    if "disk" in places:
        return "nvme"
    return "none" if "peers" in places else "cpu"


def _offload(plan: Plan, sizes: Sizes, device: str) -> dict[str, Any]:
    block: dict[str, Any] = {"device": device, "pin_memory": plan.host_copies == "pinned"}
    if device == "nvme":
        block |= {
            "nvme_path": NVME_PATH,
            "buffer_count": sizes.num_buffers,
            "buffer_size": buffer_elements(sizes, plan.num_ranks),
            "max_in_cpu": 0,
        }
    return block


def _thresholds(plan: Plan, graph: ModuleGraph) -> dict[str, int]:
    """The smallest thresholds that can keep the plan's resident parameters; they may keep others instead.

    A parameter that DeepSpeed has read from NVMe and keeps by a threshold occupies a buffer permanently, and
    soon no buffer is left. So with NVMe they keep vectors only, which are always in memory.
    """
    kept = resident(plan, graph)
    on_nvme = store_of(plan) == "nvme"
    sizes = [
        parameter.num_elements
        for parameter in parameters(graph)
        if parameter.fqn in kept and (parameter.is_vector or not on_nvme)
    ]
    return {
        "stage3_param_persistence_threshold": max(sizes, default=0),
        "stage3_model_persistence_threshold": sum(sizes),
    }


def _threads(plan: Plan) -> int:
    """Threads of one read or write: half of a rank's share of the cores, at most `_LARGEST_THREADS`."""
    cores = plan.hardware.host.num_cores // (2 * plan.num_ranks)
    return min(_LARGEST_THREADS, max(1, cores))
