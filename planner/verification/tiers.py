"""A plan for hardware that is not here, mapped one tier down so that a machine without a GPU can prove it."""

import msgspec

from planner.runtimes.registry import runtime_models
from planner.schema.plan import Placement, Plan


def one_tier_down(plan: Plan) -> Plan:
    """The same plan with GPU → CPU and streamed → disk; what is on disk or executes on the CPU stays.

    Every module that was streamed is streamed, every one that was resident is resident, and there are as many
    ranks and streams. Where the runtime stores all weights in one place, nothing else changes: that place is
    apart from where modules run even when they run on the CPU. Host memory stays that, NVMe stays NVMe, and
    parts that lie on the ranks' GPUs lie with the ranks' processes.

    Raises:
        UnknownNameError: the plan names a runtime that is not known.
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
