"""How ZeRO-Inference moves weights.

Every parameter is flattened and cut evenly over the ranks. A rank keeps its part in pinned host memory, on
NVMe or on its own GPU; before a module runs, each rank copies its part of the module's parameters to its GPU
and the ranks gather the rest from each other. Every rank generates sequences of its own, so weights cross the
hosts' links once for all of them. What stays resident has its part in the store all the same.

Copies of what comes next run beside the GPU's work, and the host waits for them, so its own work around each
module and tensor comes on top. An NVMe part is read while the one before it is copied.
Source: deepspeed.runtime.zero.{partition_parameters,partitioned_param_coordinator} (0.19.8).
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal

from planner.cost.runtime_model import Buffers, Movement, RuntimeModel, Scenario
from planner.cost.time_terms import copy_s, read_and_copy_s
from planner.graph.schema import ModuleGraph, Node
from planner.runtimes.zero_inference.parameters import parameters
from planner.runtimes.zero_inference.prefetch_excess import Excess, excesses, merged
from planner.runtimes.zero_inference.quantization import (
    PackedGraph,
    packed,
    unquantized_note,
    why_nothing,
)
from planner.runtimes.zero_inference.sizes import (
    MIN_SWAPPED_BYTES,
    Sizes,
    buffer_elements,
    sizes_for,
)
from planner.schema.breakdown import PHASES
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source

#: Host work, counted in operations of a GPU: Python on the same processor. On a CPU, where nothing else is in
#: the way, the hooks of a module take 190 to 230 µs in three families and fetching and releasing a tensor 110
#: to 120 µs; an operation takes 19 to 32 µs on the hosts of GPUs that were probed.
_OPS_PER_HOOK: Final = 8.0
_OPS_PER_TENSOR: Final = 5.0

#: Where a rank's parts can be kept: place → words for a table.
_STORES: Final = {"cpu": "host memory", "disk": "NVMe", "peers": "the GPUs"}

#: Where the cache can be.
_CACHES: Final[tuple[Literal["device", "offloaded"], ...]] = ("device", "offloaded")

#: Widths that DeepSpeed quantizes float16 weights to as it loads them.
WEIGHT_BITS: Final = (8, 4)


class ZeroInferenceRuntime(RuntimeModel):
    """See `planner.cost.runtime_model.RuntimeModel`.

    Args:
        sizes: buckets and buffers that a configuration states; the planner's own choice for None.
    """

    name = "zero-inference"
    hooks = "always"
    hooks_on = "modules"
    hooks_wait = True
    stores_all = True

    def __init__(self, sizes: Sizes | None = None) -> None:
        self.sizes = sizes
        #: A search prices one graph dozens of times, and where it exceeds depends on nothing else.
        self._walked: tuple[ModuleGraph, tuple[Excess, ...]] | None = None

    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        """On one GPU and on all; weights in host memory, on NVMe or on the GPUs; the cache here or there."""
        if profile.num_gpus == 0:
            return ()
        stores = [
            (num_ranks, store)
            for num_ranks in sorted({1, profile.num_gpus})
            for store in _STORES
            if (store != "disk" or profile.disk is not None) and (store != "peers" or num_ranks > 1)
        ]
        plain = [
            self._configuration(num_ranks, store, kv_cache=kv_cache)
            for kv_cache in _CACHES
            for num_ranks, store in stores
            if kv_cache == "device" or store != "peers"
        ]
        quantized = [
            self._configuration(num_ranks, "cpu", kv_cache="device", weight_bits=bits)
            for bits in WEIGHT_BITS
            for num_ranks, store in stores
            if store == "cpu"
        ]
        return (*plain, *quantized)

    def _configuration(
        self,
        num_ranks: int,
        store: str,
        *,
        kv_cache: Literal["device", "offloaded"],
        weight_bits: int | None = None,
    ) -> ExecutionConfig:
        words = f"ZeRO-Inference from {_STORES[store]}"
        words += f", {num_ranks} GPUs" if num_ranks > 1 else ""
        words += ", KV cache in host memory" if kv_cache == "offloaded" else ""
        words += f", {weight_bits}-bit weights" if weight_bits else ""
        return configuration(words, store, num_ranks, kv_cache=kv_cache, weight_bits=weight_bits)

    def why_not(self, scenario: Scenario) -> str | None:
        """Quantized weights need float16, and a Linear that DeepSpeed quantizes."""
        num_bits, dtype = scenario.execution.weight_bits, scenario.workload.dtype
        if num_bits is None:
            return None
        if dtype != "float16":
            return f"DeepSpeed quantizes float16 weights only, not {dtype}"
        return why_nothing(scenario.graph, num_bits)

    def rank_graph(self, graph: ModuleGraph, execution: ExecutionConfig) -> ModuleGraph:
        """The whole model; with the weights packed that are quantized, wherever they are."""
        return packed(graph, execution.weight_bits)

    def notes(self, graph: ModuleGraph, execution: ExecutionConfig) -> tuple[str, ...]:
        """Which weights inside the blocks a plan with quantized weights leaves at 16 bits."""
        if execution.weight_bits is None:
            return ()
        note = unquantized_note(graph, execution.weight_bits)
        return () if note is None else (note,)

    def hook(self, profile: HardwareProfile) -> Quantity:
        """DeepSpeed's hooks fetch, wait, look ahead and release, in Python, without weights too."""
        return _times(profile.host.op_overhead_s, _OPS_PER_HOOK)

    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """See `planner.cost.runtime_model.RuntimeModel.movement`."""
        profile, execution = scenario.profile, scenario.execution
        per_tensor = _times(profile.host.op_overhead_s, _OPS_PER_TENSOR)
        quantities: list[Quantity] = [per_tensor]
        seconds = 0.0
        if stored_on in ("cpu", "disk"):
            seconds = _copy_s(num_bytes, num_tensors, execution, profile, quantities)
        if stored_on == "disk":
            seconds = max(seconds, _read_s(num_bytes, num_tensors, profile, quantities))
        if execution.num_ranks > 1:
            seconds += _gather_s(num_bytes, num_tensors, execution.num_ranks, profile, quantities)
        return Movement(copy_s=seconds, host_s=num_tensors * per_tensor.value, quantities=tuple(quantities))

    def buffers(self, scenario: Scenario) -> Buffers:
        """The store of all parts, what is fetched ahead, and the vectors that every rank keeps."""
        graph, execution = scenario.graph, scenario.execution
        sizes, ranks = self.sizes or sizes_for(graph), execution.num_ranks
        itemsize = scenario.workload.itemsize_bytes
        found = parameters(graph)
        vectors = sum(one.num_elements for one in found if one.is_vector)
        # Parameters that are gathered together lie in one flat tensor before they are parted.
        flat = sizes.prefetch_bucket if ranks > 1 else 0
        whole = sum(one.num_elements for one in found)
        device = itemsize * (min(sizes.max_live + flat, whole) + vectors)
        parts = [one.partition_elements(ranks) * itemsize for one in found]
        loaded = unpacked = 0
        if isinstance(graph, PackedGraph):
            unpacked = itemsize * (graph.num_unpacked - whole)
            # Quantized first and cut then, every rank loads the whole model as it is.
            loaded = itemsize * graph.num_unpacked if graph.is_loaded_whole else 0
        (store,) = execution.streams_from
        if store == "peers":
            return Buffers(device=device + sum(parts), host=ranks * loaded, unpacked=unpacked)
        if store == "disk":
            small = sum(_held_bytes(part, execution) for part in parts if part < MIN_SWAPPED_BYTES)
            staged = _held_bytes(_staged_bytes(sizes, ranks, itemsize), execution)
            host = ranks * (small + staged + loaded)
            return Buffers(device=device, host=host, disk=ranks * sum(parts), unpacked=unpacked)
        held = sum(_held_bytes(part, execution) for part in parts)
        return Buffers(device=device, host=ranks * (held + loaded), unpacked=unpacked)

    def streamed_peaks(
        self, scenario: Scenario, live: Callable[[Node, str], int | None]
    ) -> Mapping[str, Mapping[str, int]]:
        """What is there beyond `max_live`, which `buffers` has, beside the activations of that moment."""
        peaks: dict[str, dict[str, int]] = {}
        for excess in self._excesses(scenario.graph):
            staged = scenario.workload.itemsize_bytes * excess.num_elements
            found = {phase: live(excess.node, phase) for phase in PHASES}
            for module in excess.modules:
                worst = peaks.setdefault(module, dict.fromkeys(PHASES, 0))
                for phase, num_bytes in found.items():
                    if num_bytes is not None:
                        worst[phase] = max(worst[phase], num_bytes + staged)
        return peaks

    def _excesses(self, graph: ModuleGraph) -> tuple[Excess, ...]:
        if self._walked is None or self._walked[0] is not graph:
            self._walked = graph, merged(excesses(graph, self.sizes or sizes_for(graph)))
        return self._walked[1]

    def load_s(self, scenario: Scenario, *, read_bytes: int, device_bytes: int) -> float:
        """One rank reads; every parameter passes through the GPUs and goes back as each rank's part."""
        profile, execution = scenario.profile, scenario.execution
        back, disk = profile.device_to_host, profile.disk
        (store,) = execution.streams_from
        seconds = read_and_copy_s(profile, read_bytes=read_bytes, device_bytes=read_bytes)
        if store != "peers" and back is not None:
            seconds += copy_s(read_bytes / execution.num_ranks, back, pinned=True)
        if store == "disk" and disk is not None:
            # Written about as fast as it is read.
            seconds += read_bytes / disk.read_bytes_per_s.value
        return seconds

    def absent(self, profile: HardwareProfile) -> str:
        """Without a GPU there is nothing to stream to."""
        return f"{profile.name} has no GPU; weights in host memory are used there by the cpu runtime"


def configuration(
    label: str,
    store: str,
    num_ranks: int,
    *,
    pinned: bool = True,
    kv_cache: Literal["device", "offloaded"] = "device",
    weight_bits: int | None = None,
) -> ExecutionConfig:
    """A configuration that keeps the ranks' parts in `store`; copies from pageable memory are waited for.

    Args:
        label: in words.
        store: `cpu`, `disk` or `peers`.
        num_ranks: one for each GPU.
        pinned: whether parts in host memory are page-locked.
        kv_cache: `device` or `offloaded`.
        weight_bits: width to which weights are quantized, or None.
    """
    return ExecutionConfig(
        runtime=ZeroInferenceRuntime.name,
        label=label,
        main="gpu:0",
        host_copies="pinned" if pinned else "pageable",
        kv_cache=kv_cache,
        streams_from=(store,),
        overlaps=pinned,
        num_ranks=num_ranks,
        num_streams=num_ranks,
        weight_bits=weight_bits,
    )


def _times(operation: Quantity, count: float) -> Quantity:
    """Host work that takes as long as so many operations."""
    return Quantity(value=count * operation.value, source=Source.ASSUMED, note="ZeRO-3's hooks on an H100 VM")


def _copy_s(
    num_bytes: int,
    num_tensors: int,
    execution: ExecutionConfig,
    profile: HardwareProfile,
    quantities: list[Quantity],
) -> float:
    """Each rank's part over its own link; all links together take no more than host memory gives."""
    link = profile.host_to_device
    if link is None:
        raise ValueError(f"profile {profile.name!r} has no link to a GPU")
    quantities += [link.latency_s, link.pinned_bytes_per_s, link.pageable_bytes_per_s]
    pinned = execution.host_copies == "pinned"
    seconds = copy_s(num_bytes / execution.num_ranks, link, pinned=pinned, num_copies=num_tensors)
    if execution.num_ranks == 1:
        return seconds
    memory = profile.host.memory_bandwidth_bytes_per_s
    quantities.append(memory)
    return max(seconds, num_bytes / memory.value)


def _read_s(num_bytes: int, num_tensors: int, profile: HardwareProfile, quantities: list[Quantity]) -> float:
    """All parts from the one disk."""
    disk = profile.disk
    if disk is None:
        raise ValueError(f"profile {profile.name!r} has no disk to stream from")
    quantities += [disk.latency_s, disk.read_bytes_per_s]
    return num_tensors * disk.latency_s.value + num_bytes / disk.read_bytes_per_s.value


def _gather_s(
    num_bytes: int, num_tensors: int, num_ranks: int, profile: HardwareProfile, quantities: list[Quantity]
) -> float:
    """The other ranks' parts over the GPUs' links, then parted: read and written once more."""
    peer, gpu = profile.peer, profile.gpu
    if peer is None or gpu is None:
        raise ValueError(f"profile {profile.name!r} has no link between GPUs")
    quantities += [peer.latency_s, peer.pinned_bytes_per_s, gpu.memory_bandwidth_bytes_per_s]
    others = num_bytes * (num_ranks - 1) / num_ranks
    parted = 2 * num_bytes / (gpu.memory_bandwidth_bytes_per_s.value * gpu.bandwidth_efficiency.value)
    return copy_s(others, peer, pinned=True, num_copies=num_tensors) + parted


def _held_bytes(num_bytes: int, execution: ExecutionConfig) -> int:
    """Of host memory: PyTorch's pinned allocator rounds each piece up to a power of two."""
    if execution.host_copies != "pinned":
        return num_bytes
    return 1 << max(0, num_bytes - 1).bit_length()


def _staged_bytes(sizes: Sizes, num_ranks: int, itemsize_bytes: int) -> int:
    return sizes.num_buffers * buffer_elements(sizes, num_ranks) * itemsize_bytes


RUNTIME_MODEL = ZeroInferenceRuntime()
