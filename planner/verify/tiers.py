"""A plan for hardware that is not here, mapped one tier down so that a machine without a GPU can prove it."""

import msgspec

from planner.plan import Placement, Plan


def one_tier_down(plan: Plan) -> Plan:
    """The same plan with GPU → CPU and streamed → disk; what is on disk or executes on the CPU stays.

    Every module that was streamed is streamed, every one that was resident is resident.
    """
    return msgspec.structs.replace(
        plan,
        main_device="cpu",
        host_copies="pageable",
        kv_cache="device",
        placements=tuple(_down(p) for p in plan.placements),
        split_blocks=dict.fromkeys(plan.split_blocks, "cpu"),
    )


def _down(placement: Placement) -> Placement:
    streamed = placement.lives != placement.executes
    return msgspec.structs.replace(placement, lives="disk" if streamed else "cpu", executes="cpu")
