"""A plan for a machine with GPUs as one without runs it."""

import pytest

from fixtures.plans import plan_with
from planner.errors import UnknownNameError
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.runtimes.registry import RUNTIME_MODELS
from planner.schema.plan import Plan
from planner.schema.workload import Workload
from planner.verification.tiers import one_tier_down

MACHINE = apply(load("t4"), gpu_memory_bytes=2 * 2**30)
WORKLOAD = Workload(batch_size=1, prompt_tokens=16, new_tokens=4, dtype="float16")


def partly_streamed(runtime: str) -> Plan:
    """OPT-1.3B on a GPU that holds part of it, the rest in host memory."""
    runtime_model = RUNTIME_MODELS[runtime]
    way = next(one for one in runtime_model.configurations(MACHINE) if "cpu" in one.streams_from)
    plan, _ = plan_with("opt-1.3b", MACHINE, runtime_model, way, WORKLOAD)
    assert {one.stored_on for one in plan.placements} == {"gpu:0", "cpu"}
    return plan


def test_where_weights_are_in_one_place_each_streamed_ones_go_to_disk() -> None:
    plan = partly_streamed("accelerate")
    down = one_tier_down(plan)
    assert (down.main_device, down.host_copies) == ("cpu", "pageable")
    for before, after in zip(plan.placements, down.placements, strict=True):
        assert after.runs_on == "cpu"
        assert after.stored_on == ("cpu" if before.stored_on == before.runs_on else "disk")


def test_a_store_of_everything_stays_where_it_is() -> None:
    plan = partly_streamed("zero-inference")
    down = one_tier_down(plan)
    assert down == plan.with_execution(main="cpu", kv_cache="device")


def test_an_unknown_runtime_is_refused() -> None:
    plan = partly_streamed("accelerate").with_execution(runtime="another")
    with pytest.raises(UnknownNameError, match="unknown runtime 'another'"):
        one_tier_down(plan)
