"""Fragmentation of PyTorch's allocator without expandable segments, which came with 2.1 in October 2023.

All published runs are older and used the allocator without them.
"""

from typing import Final

import msgspec

from planner.cost.problem import PEERS, Problem
from planner.schema.breakdown import MemoryBreakdown
from planner.schema.quantity import Quantity, Source

#: Reserved divided by allocated bytes where a KV cache grows by copying: each freed block is too small for
#: the next copy, which is one token larger.
FRAGMENTATION: Final = Quantity(
    value=1.56,
    source=Source.MEASURED,
    note="OPT-13B streamed on an H100 without expandable segments: 13.3 GiB reserved of 8.3 allocated, 13.9 "
    "of 8.9, and out of memory at 14 of 9; torch 2.11, 2026-11-20",
)


def fragmented(
    problem: Problem, memory: dict[str, dict[str, MemoryBreakdown]]
) -> dict[str, dict[str, MemoryBreakdown]]:
    """Add the allocator's fragmentation to the memory of a run, on every GPU.

    The KV cache and activations fragment the memory. Weights that ZeRO gathers and frees do so, too: they
    have many sizes and are allocated between blocks of the cache. Persistent buffers do not, and neither do
    weights that Accelerate streams, because it empties the allocator's cache around every module.
    """
    gathers = PEERS in problem.scenario.execution.streams_from
    return {
        device: phases
        if not device.startswith("gpu:")
        else {
            phase: _with_fragmentation(part, problem.buffers.device, gathers=gathers)
            for phase, part in phases.items()
        }
        for device, phases in memory.items()
    }


def _with_fragmentation(part: MemoryBreakdown, buffer_bytes: int, *, gathers: bool) -> MemoryBreakdown:
    transient_bytes = part.kv + part.activations + (max(0, part.staging - buffer_bytes) if gathers else 0)
    return msgspec.structs.replace(
        part, slack=part.slack + round((FRAGMENTATION.value - 1) * transient_bytes)
    )
