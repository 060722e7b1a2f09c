"""Seconds: roofline per module, host work per operation, copies per link."""

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

#: Reading a checkpoint from a machine without local NVMe: a network volume.
NETWORK_VOLUME: Final = Quantity(value=0.25e9, source=Source.ASSUMED, note="a general purpose cloud volume")


#: How often a decode step passes over the cache to append to it: transformers' DynamicLayer concatenates,
#: which reads all of it and writes it. Then attention reads it.
APPENDING_PASSES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What executes: a GPU or the CPU's cores, at one dtype.

    Attributes:
        flops_per_s: matrix rate that is reached, efficiency included.
        bytes_per_s: memory bandwidth that is reached.
        asynchronous: whether the host runs ahead of it (a GPU's stream) or is it (the CPU).
        cache_bytes_per_s: at which attention reads a KV cache for one query.
        quantities: every number this came from.
        few_rows: rows of a matrix product, and the seconds that it takes at least for each weight: by
            increasing rows, one row first. Empty where nobody knows.
    """

    flops_per_s: float
    bytes_per_s: float
    asynchronous: bool
    cache_bytes_per_s: float
    quantities: tuple[Quantity, ...]
    few_rows: tuple[tuple[float, float], ...] = ()

    def product_s(self, num_weights: float, products: float) -> float:
        """The least seconds of so many multiplications with so many weights: straight lines between rows."""
        if not self.few_rows or not num_weights:
            return 0.0
        rows, seconds = zip(*self.few_rows, strict=True)
        return num_weights * float(np.interp(products / num_weights, rows, seconds))


def gpu_engine(gpu: Gpu, dtype: str) -> Engine:
    """A GPU at `dtype`.

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
    """Seconds for each weight by rows; more rows take no less, whatever was measured on a busy machine."""
    if not rates:
        return ()
    rows = sorted(rates)
    seconds = accumulate((one_row_s, *(2 * one / rates[one].value for one in rows)), max)
    return tuple(zip((1, *rows), seconds, strict=True))


def kernel_s(
    node: Node, engine: Engine, phase: str, workload: Workload, *, context: int, weight_bytes: int
) -> float:
    """Roofline time of one module's own operations, and what products of few rows take beyond it.

    A matrix product reads each weight once, but never more weights than it multiplies: a lookup
    reads rows, and a mixture of experts reads the experts its tokens chose.
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
