"""Bytes: what each part of a model takes, in each phase, and what a device loses before it starts."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from planner.graph.schema import ModuleGraph, Node, PhaseCost
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source
from planner.schema.workload import Workload

_GIB: Final = 2**30
_MIB: Final = 2**20

#: Resident set of a Python process that has loaded torch and transformers; more with a CUDA context.
HOST_PROCESS: Final = Quantity(
    value=1.0 * _GIB, source=Source.ASSUMED, note="torch and transformers imported, CPU only"
)
HOST_PROCESS_WITH_GPU: Final = Quantity(
    value=3.0 * _GIB, source=Source.ASSUMED, note="the same with a CUDA context and its libraries"
)

#: What PyTorch's caching allocator holds beyond live bytes: a share of what comes and goes during a
#: forward (activations, staging, the cache that grows by copying), and a floor: cuBLAS's workspace, 32 MiB on
#: an H100 (8 on older GPUs), and pages that small blocks keep from being unmapped. When memory ran out, 55 to
#: 160 MiB of such pages were left in all plans (tests/benchmarks/results/2026-11-21-h100-probed-rows.jsonl).
SLACK_SHARE: Final = Quantity(value=0.02, source=Source.ASSUMED, note="expandable segments on")
SLACK_FLOOR_BYTES: Final = 96 * _MIB

#: A cache that grows by copying leaves holes: each step puts the longer keys and values elsewhere, and a
#: page of an expandable segment is freed only whole. This share of each unit's cache is lost so, up to this
#: much.
KV_FRAGMENTATION: Final = Quantity(
    value=16 * _MIB,
    source=Source.MEASURED,
    note="OPT-13B on an H100: 250 to 604 MiB over 40 layers at batch 8 to 132 (tests/benchmarks/results)",
)
KV_FRAGMENTATION_SHARE: Final = Quantity(
    value=0.3,
    source=Source.MEASURED,
    note="the same runs: 254 MiB of 870 at batch 8, 604 of 3480 at batch 32; less at larger ones",
)

#: Layers of an offloaded cache that are on the GPU at once. During prefill the one that has just been made;
#: afterwards the one in use, half of it twice while it grows, and the next, which is being fetched.
#: Source: transformers.cache_utils.Cache.update with offloading (5.23).
OFFLOADED_KV_LAYERS: Final = {"prefill": 1.0, "decode": 2.5}


#: Heap pages that glibc retains on a processor that runs everything are fragmented, by this share of the
#: transient bytes; in four models by 0.4 to 1.2 of them.
HOST_FRAGMENTATION_SHARE: Final = Quantity(
    value=0.8, source=Source.MEASURED, note="tests/benchmarks/results/2026-11-29-cpu-kept-pages.md"
)
#: Pages are retained where the memory that is free holds so many times the transient bytes: these themselves
#: and one and a half times as much again.
KEPT_PAGES_ROOM: Final = 2.5

#: What a transient byte takes of a capacity: itself, and the allocator's share.
TRANSIENT_FACTOR: Final = 1.0 + SLACK_SHARE.value


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerm:
    """Bytes that one part of an assignment adds to one device in one phase.

    Terms add up; only the largest of activations and streamed modules is no term, since those follow each
    other (see `planner.cost.memory`).

    Attributes:
        weights: parameters and buffers; they stay.
        kv: cache.
        staging: buffers of the runtime.
        fragmentation: what the growth of the cache leaves unusable.
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
        """What it takes of a device's capacity, the allocator's share of transient bytes included."""
        return self.weights + self.fragmentation + TRANSIENT_FACTOR * (self.kv + self.staging)


def retains_host_pages(transient_bytes: float, room_bytes: int) -> bool:
    """Whether the C library retains heap pages.

    Args:
        transient_bytes: what comes and goes.
        room_bytes: capacity beside weights and the process.
    """
    return KEPT_PAGES_ROOM * transient_bytes <= room_bytes


def host_fragmentation_bytes(transient_bytes: int, room_bytes: int) -> int:
    """What retained heap pages add; 0 where none are retained. Arguments as for `retains_host_pages`."""
    if not retains_host_pages(transient_bytes, room_bytes):
        return 0
    return round(HOST_FRAGMENTATION_SHARE.value * transient_bytes)


def kv_fragmentation_bytes(unit_kv_bytes: int) -> int:
    """What the growth of one unit's cache on a GPU fragments, at most."""
    return min(round(KV_FRAGMENTATION_SHARE.value * unit_kv_bytes), round(KV_FRAGMENTATION.value))


def self_context(graph: ModuleGraph, workload: Workload, generated: int) -> int:
    """Tokens in the self-attention cache once `generated` new tokens have been through the model.

    A decoder sees its prompt; an encoder-decoder's decoder sees its start token instead.
    """
    start = 1 if graph.is_encoder_decoder else workload.prompt_tokens
    return start + generated


def kv_bytes(node: Node, workload: Workload, context: int) -> int:
    """KV cache (or recurrent state) of one module for the whole batch at `context` tokens."""
    kv = node.kv
    if kv is None:
        return 0
    length = context if kv.window is None else min(context, kv.window)
    per_sequence = kv.per_sequence + kv.per_token * length + kv.per_prompt_token * workload.prompt_tokens
    scale = 1.0 if kv.fixed_dtype else workload.itemsize_bytes / 2
    return round(workload.batch_size * per_sequence * scale)


def peak_bytes(node: Node, phase: str, workload: Workload, context: int) -> int:
    """Live activation bytes of the whole model while this module's own code runs."""
    cost = phase_cost(node, phase, workload)
    if cost is None:
        return 0
    lengths = {"batch": workload.batch_size, "prompt": workload.prompt_tokens, "context": context}
    return round(max((poly(**lengths) for poly in cost.peak_bytes), default=0.0))


def phase_cost(node: Node, phase: str, workload: Workload) -> PhaseCost | None:
    """The module's cost in one phase at the workload's element size, if it runs in it."""
    costs = node.costs.get(str(workload.itemsize_bytes))
    if costs is None or node.num_calls == 0:
        return None
    cost: PhaseCost = getattr(costs, phase)
    return cost


def sampling_bytes(graph: ModuleGraph, workload: Workload) -> int:
    """What picking the next token keeps alive: the logits and `generate()`'s float32 copy of them."""
    if not graph.generates:
        return 0
    return workload.batch_size * graph.vocab_size * (workload.itemsize_bytes + 4)


def slack_bytes(transient_bytes: int) -> int:
    """What the allocator holds beyond live bytes, given the bytes that come and go."""
    return SLACK_FLOOR_BYTES + round(SLACK_SHARE.value * transient_bytes)


def host_process_bytes(profile: HardwareProfile) -> int:
    """What the process itself takes of host memory."""
    return round((HOST_PROCESS_WITH_GPU if profile.num_gpus else HOST_PROCESS).value)


def largest(values: Iterable[int]) -> int:
    """The maximum, 0 for nothing."""
    return max(values, default=0)
