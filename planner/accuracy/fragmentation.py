"""PyTorch's allocator before expandable segments (2.1, October 2023), which all published runs used."""

from typing import Final

import msgspec

from planner.cost.problem import PEERS, Problem
from planner.schema.breakdown import MemoryBreakdown
from planner.schema.quantity import Quantity, Source

#: Reserved over allocated bytes where a cache grows by copying: the holes that it leaves are of no use to
#: what is larger by a token.
FRAGMENTATION: Final = Quantity(
    value=1.56,
    source=Source.MEASURED,
    note="OPT-13B streamed on an H100 without expandable segments: 13.3 GiB reserved of 8.3 allocated, 13.9 "
    "of 8.9, and out of memory at 14 of 9; torch 2.11, 2026-11-20",
)


def fragmented(
    problem: Problem, memory: dict[str, dict[str, MemoryBreakdown]]
) -> dict[str, dict[str, MemoryBreakdown]]:
    """The memory of a run with what the allocator of its time held beyond live bytes on every GPU.

    ZeRO gathers and frees weights of many sizes between the cache's; a store, a workspace and NCCL's buffers
    stay where they are, and Accelerate empties the allocator around every module that it fetches.
    """
    gathers = PEERS in problem.scenario.execution.streams_from
    return {
        device: phases
        if not device.startswith("gpu:")
        else {phase: _with_holes(part, problem.buffers.device, gathers) for phase, part in phases.items()}
        for device, phases in memory.items()
    }


def _with_holes(part: MemoryBreakdown, kept_bytes: int, gathers: bool) -> MemoryBreakdown:
    transient_bytes = part.kv + part.activations + (max(0, part.staging - kept_bytes) if gathers else 0)
    return msgspec.structs.replace(
        part, slack=part.slack + round((FRAGMENTATION.value - 1) * transient_bytes)
    )
