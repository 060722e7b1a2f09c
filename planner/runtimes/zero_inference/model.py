"""The runtime model of ZeRO-Inference: how it moves weights, and what it needs besides them.

Every parameter is flattened and partitioned evenly over the ranks. A rank stores its partition in pinned host
memory, on NVMe or on its own GPU. Before a module runs, each rank copies its partitions of the module's
parameters to its GPU, and an all-gather completes them. Every rank generates sequences of its own, so each
weight crosses the host-GPU links only once for all ranks. Resident weights are in the store as well.

The next modules' weights are copied while the GPU computes. The host waits for these copies, so its own work
around each module and tensor is added. A partition on NVMe is read while the one before it is copied.
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
from planner.runtimes.zero_inference.transfers import gather_s, partition_copy_s, partition_read_s
from planner.schema.breakdown import PHASES
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source

#: Host work of a module's hooks and of a tensor, in multiples of the host time of one operation, since both
#: are Python on the same CPU. Measured without a GPU, the hooks of a module take 190 to 230 µs in three model
#: types, and fetching and releasing a tensor 110 to 120 µs; an operation takes 19 to 32 µs on hosts of GPUs.
_OPS_PER_HOOK: Final = 8.0
_OPS_PER_TENSOR: Final = 5.0

#: Places where a rank's partitions can be stored → words for a label.
_STORES: Final = {"cpu": "host memory", "disk": "NVMe", "peers": "the GPUs"}

#: Where the KV cache can be.
_CACHES: Final[tuple[Literal["device", "offloaded"], ...]] = ("device", "offloaded")

#: Widths that DeepSpeed quantizes float16 weights to as it loads them.
WEIGHT_BITS: Final = (8, 4)


class ZeroInferenceRuntime(RuntimeModel):
    """See `planner.cost.runtime_model.RuntimeModel`.

    Args:
        sizes: sizes of buckets and buffers of a user's configuration; None for the planner's own choice.
    """

    name = "zero-inference"
    hooks = "always"
    hooks_on = "modules"
    hooks_wait = True
    stores_all = True

    def __init__(self, sizes: Sizes | None = None) -> None:
        self.sizes = sizes
        #: The last graph with its excesses, which depend on it alone. A search prices it many times.
        self._last_excesses: tuple[ModuleGraph, tuple[Excess, ...]] | None = None

    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        """On one GPU and on all; every store of the weights; the KV cache on the GPU or in host memory."""
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
        """The whole model, with quantized weights in their packed form."""
        return packed(graph, execution.weight_bits)

    def notes(self, graph: ModuleGraph, execution: ExecutionConfig) -> tuple[str, ...]:
        """Which weights inside the blocks a plan with quantized weights leaves at 16 bits."""
        if execution.weight_bits is None:
            return ()
        note = unquantized_note(graph, execution.weight_bits)
        return () if note is None else (note,)

    def hook(self, profile: HardwareProfile) -> Quantity:
        """DeepSpeed's hooks fetch, wait, prefetch and release in Python, even for modules without weights."""
        return _times(profile.host.op_overhead_s, _OPS_PER_HOOK)

    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """See `planner.cost.runtime_model.RuntimeModel.movement`.

        Args:
            scenario: the scenario of one rank.
            num_bytes: bytes of all the whole tensors; each rank copies its partitions of them.
            num_tensors: number of tensors; each is read, copied and gathered by itself.
            stored_on: the store: `cpu`, `disk` or `peers`.
            runs_on: the rank's GPU.
        """
        profile, execution = scenario.profile, scenario.execution
        per_tensor = _times(profile.host.op_overhead_s, _OPS_PER_TENSOR)
        quantities: list[Quantity] = [per_tensor]
        seconds = 0.0
        if stored_on in ("cpu", "disk"):
            seconds = partition_copy_s(num_bytes, num_tensors, execution, profile, quantities)
        if stored_on == "disk":
            seconds = max(seconds, partition_read_s(num_bytes, num_tensors, profile, quantities))
        if execution.num_ranks > 1:
            seconds += gather_s(num_bytes, num_tensors, execution.num_ranks, profile, quantities)
        return Movement(copy_s=seconds, host_s=num_tensors * per_tensor.value, quantities=tuple(quantities))

    def buffers(self, scenario: Scenario) -> Buffers:
        """The store of all partitions, the prefetched weights, and the vectors that every rank keeps."""
        graph, execution = scenario.graph, scenario.execution
        sizes, ranks = self.sizes or sizes_for(graph), execution.num_ranks
        itemsize = scenario.workload.itemsize_bytes
        owned = parameters(graph)
        vectors = sum(parameter.num_elements for parameter in owned if parameter.is_vector)
        # Parameters that are gathered together are in one flat tensor before it is split.
        flat = sizes.prefetch_bucket if ranks > 1 else 0
        whole = sum(parameter.num_elements for parameter in owned)
        device = itemsize * (min(sizes.max_live + flat, whole) + vectors)
        parts = [parameter.partition_elements(ranks) * itemsize for parameter in owned]
        loaded = unpacked = 0
        if isinstance(graph, PackedGraph):
            unpacked = itemsize * (graph.num_unpacked - whole)
            # The model is quantized before it is partitioned, so every rank loads the whole unpacked model.
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
        """Weights beyond `max_live`, which `buffers` counts, together with the activations at that time."""
        peaks: dict[str, dict[str, int]] = {}
        for excess in self._excesses(scenario.graph):
            staged = scenario.workload.itemsize_bytes * excess.num_elements
            activations = {phase: live(excess.node, phase) for phase in PHASES}
            for module in excess.modules:
                worst = peaks.setdefault(module, dict.fromkeys(PHASES, 0))
                for phase, num_bytes in activations.items():
                    if num_bytes is not None:
                        worst[phase] = max(worst[phase], num_bytes + staged)
        return peaks

    def _excesses(self, graph: ModuleGraph) -> tuple[Excess, ...]:
        if self._last_excesses is None or self._last_excesses[0] is not graph:
            self._last_excesses = graph, merged(excesses(graph, self.sizes or sizes_for(graph)))
        return self._last_excesses[1]

    def load_s(self, scenario: Scenario, *, read_bytes: int, device_bytes: int) -> float:
        """One rank reads; every parameter is copied to the GPUs and back as each rank's partition.

        Args:
            scenario: the scenario of one rank.
            read_bytes: bytes of the whole checkpoint.
            device_bytes: not used: resident weights are in the store as well.
        """
        profile, execution = scenario.profile, scenario.execution
        back, disk = profile.device_to_host, profile.disk
        (store,) = execution.streams_from
        seconds = read_and_copy_s(profile, read_bytes=read_bytes, device_bytes=read_bytes)
        if store != "peers" and back is not None:
            seconds += copy_s(read_bytes / execution.num_ranks, back, pinned=True)
        if store == "disk" and disk is not None:
            # Writing to the disk is assumed to be as fast as reading.
            seconds += read_bytes / disk.read_bytes_per_s.value
        return seconds

    def absent(self, profile: HardwareProfile) -> str:
        """See `planner.cost.runtime_model.RuntimeModel.absent`."""
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
    """A configuration that stores the ranks' partitions in `store`.

    Args:
        label: the configuration in words.
        store: place of the partitions: `cpu`, `disk` or `peers`.
        num_ranks: number of ranks, one for each GPU.
        pinned: whether partitions in host memory are page-locked; only then copies overlap with computing.
        kv_cache: `device` or `offloaded`.
        weight_bits: width to which weights are quantized, 4 or 8, or None.
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
    """Host time of `count` operations."""
    return Quantity(value=count * operation.value, source=Source.ASSUMED, note="ZeRO-3's hooks on an H100 VM")


def _held_bytes(num_bytes: int, execution: ExecutionConfig) -> int:
    """Host memory of one partition: PyTorch's pinned allocator rounds it up to a power of two."""
    if execution.host_copies != "pinned":
        return num_bytes
    return 1 << max(0, num_bytes - 1).bit_length()


def _staged_bytes(sizes: Sizes, num_ranks: int, itemsize_bytes: int) -> int:
    return sizes.num_buffers * buffer_elements(sizes, num_ranks) * itemsize_bytes


RUNTIME_MODEL = ZeroInferenceRuntime()
