"""Maps a plan one tier down, so that a machine without its hardware can verify it."""

import msgspec

from planner.runtimes.registry import runtime_models
from planner.schema.plan import Placement, Plan


def one_tier_down(plan: Plan) -> Plan:
    """The plan with GPU replaced by CPU, and streamed weights by weights on disk.

    Streamed modules remain streamed and resident modules remain resident; the numbers of ranks and streams do
    not change. For a runtime that stores all weights in one place, only the GPU is replaced, because that
    place is separate from the executing device also on the CPU: weights in host memory or on NVMe remain
    there, and weights partitioned over the ranks' GPUs are partitioned over the ranks' processes.

    Raises:
        UnknownNameError: the plan's runtime is unknown.
    """
    (runtime_model,) = runtime_models([plan.runtime])
    down = plan.with_execution(main="cpu", kv_cache="device")
    if runtime_model.stores_all:
        return down
    return msgspec.structs.replace(
        down.with_execution(host_copies="pageable"),
        placements=tuple(_down(p) for p in plan.placements),
        split_blocks=dict.fromkeys(plan.split_blocks, "cpu"),
    )


def _down(placement: Placement) -> Placement:
    streamed = placement.stored_on != placement.runs_on
    return msgspec.structs.replace(placement, stored_on="disk" if streamed else "cpu", runs_on="cpu")
