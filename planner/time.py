"""Seconds: roofline per module, host work per operation, copies per link."""

from dataclasses import dataclass
from typing import Final

from planner.errors import InvalidInputError
from planner.graph.schema import Node
from planner.hardware.schema import Gpu, HardwareProfile, Host, Link
from planner.memory import kv_bytes, phase_cost
from planner.sources import Quantity, Source
from planner.workload import Workload

#: Reading a checkpoint from a machine without local NVMe: a network volume.
NETWORK_VOLUME: Final = Quantity(value=0.25e9, source=Source.ASSUMED, note="a general purpose cloud volume")


#: How often a decode step passes over the cache: appending to it reads and writes all of it, since
#: transformers' DynamicLayer concatenates, and attention reads it.
CACHE_PASSES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What executes: a GPU or the CPU's cores, at one dtype.

    Attributes:
        flops_per_s: matrix rate that is reached, efficiency included.
        bytes_per_s: memory bandwidth that is reached.
        asynchronous: whether the host runs ahead of it (a GPU's stream) or is it (the CPU).
        quantities: every number this came from.
    """

    flops_per_s: float
    bytes_per_s: float
    asynchronous: bool
    quantities: tuple[Quantity, ...]


def gpu_engine(gpu: Gpu, dtype: str) -> Engine:
    """A GPU at `dtype`.

    Raises:
        InvalidInputError: the GPU has no native support for the dtype.
    """
    rate = gpu.flops_per_s.get(dtype)
    if rate is None:
        native = ", ".join(d for d in ("float16", "bfloat16", "float32") if d in gpu.flops_per_s)
        raise InvalidInputError(f"{gpu.name} does not run {dtype} natively; it runs {native}")
    return Engine(
        flops_per_s=rate.value * gpu.gemm_efficiency.value,
        bytes_per_s=gpu.memory_bandwidth_bytes_per_s.value * gpu.bandwidth_efficiency.value,
        asynchronous=True,
        quantities=(
            rate,
            gpu.gemm_efficiency,
            gpu.memory_bandwidth_bytes_per_s,
            gpu.bandwidth_efficiency,
        ),
    )


def cpu_engine(host: Host, dtype: str) -> Engine:
    """The CPU's cores at `dtype`.

    Raises:
        InvalidInputError: the profile has no rate for the dtype.
    """
    rate = host.flops_per_s.get(dtype)
    if rate is None:
        raise InvalidInputError(
            f"this profile's CPU has no rate for {dtype}; it has {', '.join(sorted(host.flops_per_s))}"
        )
    read = host.gemv_bytes_per_s.get(dtype, host.memory_bandwidth_bytes_per_s)
    return Engine(
        flops_per_s=rate.value,
        bytes_per_s=read.value,
        asynchronous=False,
        quantities=(rate, read),
    )


def kernel_s(
    node: Node, engine: Engine, phase: str, workload: Workload, *, context: int, weight_bytes: int
) -> float:
    """Roofline time of one module's own operations.

    A matrix product reads each weight once, but never more weights than it multiplies: a lookup
    reads rows, and a mixture of experts reads the experts its tokens chose.
    """
    cost = phase_cost(node, phase, workload)
    if cost is None:
        return 0.0
    lengths = {"batch": workload.batch_size, "prompt": workload.prompt_tokens, "context": context}
    flops = max(0.0, cost.flops(**lengths))
    weights = min(weight_bytes, flops / 2 * workload.itemsize_bytes)
    cached = CACHE_PASSES * kv_bytes(node, workload, context) if phase == "decode" else 0
    moved = max(0.0, cost.moved_bytes(**lengths) + weights + cached)
    return node.num_calls * max(flops / engine.flops_per_s, moved / engine.bytes_per_s)


def dispatch_s(node: Node, profile: HardwareProfile, phase: str, workload: Workload) -> float:
    """Host time to issue one module's own operations."""
    cost = phase_cost(node, phase, workload)
    if cost is None:
        return 0.0
    return node.num_calls * cost.num_ops * profile.host.op_overhead_s.value


def copy_s(num_bytes: float, link: Link, *, pinned: bool, num_copies: int = 1) -> float:
    """Time of `num_copies` blocking copies of `num_bytes` in all."""
    rate = link.pinned_bytes_per_s if pinned else link.pageable_bytes_per_s
    return num_copies * link.latency_s.value + num_bytes / rate.value


def read_and_copy_s(profile: HardwareProfile, *, read_bytes: int, device_bytes: int) -> float:
    """Time to read bytes from the disk, and to copy some of them to a GPU from pageable memory."""
    disk, link = profile.disk, profile.host_to_device
    rate = (disk.read_bytes_per_s if disk is not None else NETWORK_VOLUME).value
    seconds = read_bytes / rate
    return seconds + (copy_s(device_bytes, link, pinned=False) if link is not None and device_bytes else 0.0)
