"""Formulas and constants of memory: bytes of each part of a model per phase, and fixed costs of a device."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from planner.graph.schema import ModuleGraph, Node, PhaseCost
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source
from planner.schema.workload import Workload

GIB: Final = 2**30
MIB: Final = 2**20

#: Resident set size of a Python process that has imported torch and transformers; larger with a CUDA context.
HOST_PROCESS: Final = Quantity(
    value=1.0 * GIB, source=Source.ASSUMED, note="torch and transformers imported, CPU only"
)
HOST_PROCESS_WITH_GPU: Final = Quantity(
    value=3.0 * GIB, source=Source.ASSUMED, note="the same with a CUDA context and its libraries"
)

#: What PyTorch's caching allocator holds beyond live bytes: a share of the transient bytes of a forward
#: (activations, staging, the cache that grows by copying), and a floor: cuBLAS's workspace, 32 MiB on an H100
#: (8 on older GPUs), and pages that small blocks keep from being unmapped. When memory ran out, 55 to 160 MiB
#: of such pages were left in all plans (tests/benchmarks/results/2026-11-21-h100-probed-rows.jsonl).
SLACK_SHARE: Final = Quantity(value=0.02, source=Source.ASSUMED, note="expandable segments on")
SLACK_FLOOR_BYTES: Final = 96 * MIB

#: Fragmentation of a cache that grows by copying: each step writes the longer keys and values to new memory,
#: and a page of an expandable segment is freed only as a whole. Per unit it is a share of the unit's cache
#: (`KV_FRAGMENTATION_SHARE`), at most `KV_FRAGMENTATION` bytes.
KV_FRAGMENTATION: Final = Quantity(
    value=16 * MIB,
    source=Source.MEASURED,
    note="OPT-13B on an H100: 250 to 604 MiB over 40 layers at batch 8 to 132 (tests/benchmarks/results)",
)
KV_FRAGMENTATION_SHARE: Final = Quantity(
    value=0.3,
    source=Source.MEASURED,
    note="the same runs: 254 MiB of 870 at batch 8, 604 of 3480 at batch 32; less at larger ones",
)

#: Layers of an offloaded cache that are on the GPU at the same time. In prefill: the layer just computed. In
#: decode: the layer in use, half of it a second time while it grows, and the next one, which is prefetched.
#: Source: transformers.cache_utils.Cache.update with offloading (5.23).
OFFLOADED_KV_LAYERS: Final = {"prefill": 1.0, "decode": 2.5}


#: Fragmentation of the heap pages that glibc retains when the CPU runs the whole model, as a share of the
#: transient bytes; 0.4 to 1.2 in four models.
HOST_FRAGMENTATION_SHARE: Final = Quantity(
    value=0.8, source=Source.MEASURED, note="tests/benchmarks/results/2026-11-29-cpu-kept-pages.md"
)
#: Heap pages are retained when free memory is at least this multiple of the transient bytes: these once, and
#: 1.5 times as much for fragmentation.
KEPT_PAGES_ROOM: Final = 2.5

#: Bytes of capacity that one transient byte takes: itself, and the allocator's share.
TRANSIENT_FACTOR: Final = 1.0 + SLACK_SHARE.value


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerm:
    """Bytes that one part of an assignment adds to one device in one phase.

    Terms are added. Activations and streamed modules are no terms, because only their maximum counts (see
    `planner.cost.memory`).

    Attributes:
        weights: parameters and buffers, which are there all the time.
        kv: KV cache.
        staging: buffers of the runtime.
        fragmentation: bytes that the growth of the cache makes unusable.
    """

    weights: int = 0
    kv: int = 0
    staging: int = 0
    fragmentation: int = 0

    @classmethod
    def total(cls, terms: Iterable["MemoryTerm"]) -> "MemoryTerm":
        """The sum of any number of terms."""
        weights = kv = staging = fragmentation = 0
        for term in terms:
            weights += term.weights
            kv += term.kv
            staging += term.staging
            fragmentation += term.fragmentation
        return cls(weights=weights, kv=kv, staging=staging, fragmentation=fragmentation)

    @property
    def charged_bytes(self) -> float:
        """Bytes of a device's capacity that it takes, with the allocator's share of transient bytes."""
        return self.weights + self.fragmentation + TRANSIENT_FACTOR * (self.kv + self.staging)


def retains_host_pages(transient_bytes: float, room_bytes: int) -> bool:
    """Whether the C library retains heap pages.

    Args:
        transient_bytes: activations, staging and cache.
        room_bytes: capacity without weights and the process.
    """
    return KEPT_PAGES_ROOM * transient_bytes <= room_bytes


def host_fragmentation_bytes(transient_bytes: int, room_bytes: int) -> int:
    """Bytes that retained heap pages add, 0 where none are; arguments as in `retains_host_pages`."""
    if not retains_host_pages(transient_bytes, room_bytes):
        return 0
    return round(HOST_FRAGMENTATION_SHARE.value * transient_bytes)


def kv_fragmentation_bytes(unit_kv_bytes: int) -> int:
    """Bytes lost to fragmentation as one unit's cache grows on a GPU, given the cache's final bytes."""
    return min(round(KV_FRAGMENTATION_SHARE.value * unit_kv_bytes), round(KV_FRAGMENTATION.value))


def self_context(graph: ModuleGraph, workload: Workload, generated: int) -> int:
    """Tokens in the self-attention cache after the model has processed `generated` new tokens.

    Args:
        graph: the model. The cache of a decoder starts with the prompt, that of an encoder-decoder with the
            start token.
        workload: gives the length of the prompt.
        generated: new tokens that have been an input of the model, from 0.
    """
    start = 1 if graph.is_encoder_decoder else workload.prompt_tokens
    return start + generated


def kv_bytes(node: Node, workload: Workload, context: int) -> int:
    """Bytes of the KV cache (or recurrent state) of one module for the whole batch.

    Args:
        node: the module; one without a cache takes 0.
        workload: gives batch, prompt length and element size.
        context: tokens in the self-attention cache.
    """
    kv = node.kv
    if kv is None:
        return 0
    length = context if kv.window is None else min(context, kv.window)
    per_sequence = kv.per_sequence + kv.per_token * length + kv.per_prompt_token * workload.prompt_tokens
    scale = 1.0 if kv.fixed_dtype else workload.itemsize_bytes / 2
    return round(workload.batch_size * per_sequence * scale)


def peak_bytes(node: Node, phase: str, workload: Workload, context: int) -> int:
    """Live activation bytes of the whole model while one module's own operations run.

    Args:
        node: the module; 0 where it does not run in the phase.
        phase: `prefill` or `decode`.
        workload: gives batch, prompt length and element size.
        context: tokens in the self-attention cache.
    """
    cost = phase_cost(node, phase, workload)
    if cost is None:
        return 0
    lengths = {"batch": workload.batch_size, "prompt": workload.prompt_tokens, "context": context}
    return round(max((poly(**lengths) for poly in cost.peak_bytes), default=0.0))


def phase_cost(node: Node, phase: str, workload: Workload) -> PhaseCost | None:
    """A module's cost in one phase.

    Args:
        node: the module.
        phase: `prefill` or `decode`.
        workload: gives the element size.

    Returns:
        The cost at that element size; None when the module is never called or has no cost at it.
    """
    costs = node.costs.get(str(workload.itemsize_bytes))
    if costs is None or node.num_calls == 0:
        return None
    cost: PhaseCost = getattr(costs, phase)
    return cost


def sampling_bytes(graph: ModuleGraph, workload: Workload) -> int:
    """Bytes that choosing the next token needs: the logits and `generate()`'s float32 copy of them."""
    if not graph.generates:
        return 0
    return workload.batch_size * graph.vocab_size * (workload.itemsize_bytes + 4)


def slack_bytes(transient_bytes: int) -> int:
    """Bytes that the allocator holds beyond live bytes, given the transient bytes."""
    return SLACK_FLOOR_BYTES + round(SLACK_SHARE.value * transient_bytes)


def host_process_bytes(profile: HardwareProfile) -> int:
    """Host memory of one process that runs a model, without the model."""
    return round((HOST_PROCESS_WITH_GPU if profile.num_gpus else HOST_PROCESS).value)


def largest(values: Iterable[int]) -> int:
    """The maximum of `values`; 0 when there are none."""
    return max(values, default=0)
