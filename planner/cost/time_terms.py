"""Formulas and constants of time: roofline per module, host work per operation, copies over links."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from planner.cost.memory_terms import kv_bytes, phase_cost
from planner.errors import InvalidInputError
from planner.graph.schema import Node
from planner.schema.hardware import Gpu, HardwareProfile, Host, Link
from planner.schema.quantity import Quantity, Source
from planner.schema.workload import DTYPE_BYTES, Workload

#: Read rate of a checkpoint on a machine without local NVMe, which then is on a network volume.
NETWORK_VOLUME: Final = Quantity(value=0.25e9, source=Source.ASSUMED, note="a general purpose cloud volume")


#: Times that a decode step reads or writes the whole cache in order to append to it: transformers'
#: DynamicLayer concatenates, which reads all of it and writes all of it. Attention then reads it once more.
APPENDING_PASSES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What runs kernels: a GPU or all cores of the CPU, at one dtype.

    Attributes:
        flops_per_s: matrix rate that is reached, efficiency included.
        bytes_per_s: memory bandwidth that is reached.
        asynchronous: True for a GPU, whose kernels run while the host issues the next; False for the CPU.
        cache_bytes_per_s: rate at which attention reads a KV cache for one query.
        quantities: every number that these were computed from.
        few_rows: pairs of a number of rows of a matrix product and the least seconds per weight at that many
            rows, by increasing rows, the first with one row. Empty where it was not measured.
    """

    flops_per_s: float
    bytes_per_s: float
    asynchronous: bool
    cache_bytes_per_s: float
    quantities: tuple[Quantity, ...]
    few_rows: tuple[tuple[float, float], ...] = ()

    def product_s(self, num_weights: float, products: float) -> float:
        """The least seconds of a matrix product, interpolated linearly between numbers of rows; 0 if unknown.

        `products` are multiplications with a weight, so `products / num_weights` is the number of rows.
        """
        if not self.few_rows or not num_weights:
            return 0.0
        rows, seconds = zip(*self.few_rows, strict=True)
        return num_weights * float(np.interp(products / num_weights, rows, seconds))


def gpu_engine(gpu: Gpu, dtype: str) -> Engine:
    """The engine of a GPU at `dtype`.

    Raises:
        InvalidInputError: the GPU has no native support for the dtype.
    """
    rate = gpu.flops_per_s.get(dtype)
    if rate is None:
        native = ", ".join(d for d in ("float16", "bfloat16", "float32") if d in gpu.flops_per_s)
        raise InvalidInputError(f"{gpu.name} does not run {dtype} natively; it runs {native}")
    bytes_per_s = gpu.memory_bandwidth_bytes_per_s.value * gpu.bandwidth_efficiency.value
    return Engine(
        flops_per_s=rate.value * gpu.gemm_efficiency.value,
        bytes_per_s=bytes_per_s,
        asynchronous=True,
        cache_bytes_per_s=bytes_per_s,
        quantities=(
            rate,
            gpu.gemm_efficiency,
            gpu.memory_bandwidth_bytes_per_s,
            gpu.bandwidth_efficiency,
        ),
    )


def cpu_engine(host: Host, dtype: str) -> Engine:
    """The engine of all cores of the CPU at `dtype`.

    Raises:
        InvalidInputError: the profile has no rate for the dtype.
    """
    rate = host.flops_per_s.get(dtype)
    if rate is None:
        raise InvalidInputError(
            f"this profile's CPU has no rate for {dtype}; it has {', '.join(sorted(host.flops_per_s))}"
        )
    read = host.gemv_bytes_per_s.get(dtype, host.memory_bandwidth_bytes_per_s)
    few = host.few_rows_flops_per_s.get(dtype, {})
    attention = host.attention_bytes_per_s.get(dtype, read)
    return Engine(
        flops_per_s=rate.value,
        bytes_per_s=read.value,
        asynchronous=False,
        cache_bytes_per_s=attention.value,
        quantities=(rate, read, attention, *few.values()),
        few_rows=_few_rows(few, DTYPE_BYTES[dtype] / read.value),
    )


def _few_rows(rates: Mapping[int, Quantity], one_row_s: float) -> tuple[tuple[float, float], ...]:
    """Pairs of rows and seconds per weight; made monotone, because measurements are noisy.

    `rates` are FLOP per second by rows, `one_row_s` the seconds per weight with one row.
    """
    if not rates:
        return ()
    rows = sorted(rates)
    seconds = accumulate((one_row_s, *(2 * num_rows / rates[num_rows].value for num_rows in rows)), max)
    return tuple(zip((1, *rows), seconds, strict=True))


def kernel_s(
    node: Node, engine: Engine, phase: str, workload: Workload, *, context: int, weight_bytes: int
) -> float:
    """Seconds of one module's own operations: the roofline, or the measured time of products with few rows.

    A matrix product reads each weight once, but never more weights than it multiplies: an embedding reads
    the rows that are looked up, and a mixture of experts the experts that its tokens were routed to.

    Args:
        node: the module.
        engine: what runs it.
        phase: `prefill` or `decode`.
        workload: gives batch, prompt length and element size.
        context: tokens in the self-attention cache.
        weight_bytes: bytes of the module's parameters.

    Returns:
        Seconds of all its calls in one forward; 0 where it does not run in the phase.
    """
    cost = phase_cost(node, phase, workload)
    if cost is None:
        return 0.0
    lengths = {"batch": workload.batch_size, "prompt": workload.prompt_tokens, "context": context}
    flops = max(0.0, cost.flops(**lengths))
    weights = min(weight_bytes, flops / 2 * workload.itemsize_bytes)
    cached = kv_bytes(node, workload, context) if phase == "decode" else 0
    moved = max(0.0, cost.moved_bytes(**lengths) + weights + APPENDING_PASSES * cached)
    moving_s = moved / engine.bytes_per_s + cached / engine.cache_bytes_per_s
    product_s = engine.product_s(weights / workload.itemsize_bytes, flops / 2)
    return node.num_calls * max(flops / engine.flops_per_s, moving_s, product_s)


def dispatch_s(node: Node, profile: HardwareProfile, phase: str, workload: Workload) -> float:
    """Host seconds to issue one module's own operations in one forward.

    Args:
        node: the module; 0 where it does not run in the phase.
        profile: gives the host time of one operation.
        phase: `prefill` or `decode`.
        workload: gives the element size.
    """
    cost = phase_cost(node, phase, workload)
    if cost is None:
        return 0.0
    return node.num_calls * cost.num_ops * profile.host.op_overhead_s.value


def copy_s(num_bytes: float, link: Link, *, pinned: bool, num_copies: int = 1) -> float:
    """Seconds of blocking copies over a link.

    Args:
        num_bytes: bytes of all copies together.
        link: one direction of the link.
        pinned: whether the host's side is page-locked memory.
        num_copies: number of copies; each takes the link's latency.
    """
    rate = link.pinned_bytes_per_s if pinned else link.pageable_bytes_per_s
    return num_copies * link.latency_s.value + num_bytes / rate.value


def read_and_copy_s(profile: HardwareProfile, *, read_bytes: int, device_bytes: int) -> float:
    """Seconds to read bytes from the disk, and then to copy bytes to a GPU from pageable memory.

    Args:
        profile: the machine; without a disk its checkpoint is on a network volume.
        read_bytes: bytes to read.
        device_bytes: bytes to copy to one GPU.
    """
    disk, link = profile.disk, profile.host_to_device
    rate = (disk.read_bytes_per_s if disk is not None else NETWORK_VOLUME).value
    seconds = read_bytes / rate
    return seconds + (copy_s(device_bytes, link, pinned=False) if link is not None and device_bytes else 0.0)
