"""What a little more of something would bring."""

from functools import cache
from typing import Any

import msgspec
import pytest

from fixtures.graphs import layered_graph
from planner.graph.model import Model
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.schema.plan import Plan
from planner.schema.request import Request
from planner.search.choose import make_plan
from planner.search.what_if import Change, int8_weights, what_if
from planner.tracing.load import load_model

MODEL = Model(
    name="layered",
    auto_class="causal-lm",
    dtype="float16",
    graph=layered_graph(40, hidden=5120, vocabulary=50272),
)
#: The best batch stays free. A long prompt leaves room for few sequences: few batches are tried.
FREE_BATCH = Request(objective="throughput", prompt_tokens=1024, new_tokens=4, runtimes=("accelerate",))


@cache
def planned(request: Request) -> Plan:
    """The model on a T4; a request's plan is made once for all tests."""
    return make_plan(MODEL, load("t4"), request)


@cache
def changes_of(request: Request) -> dict[str, Change]:
    """What each change would bring to the plan on a T4."""
    return {change.what: change for change in what_if(MODEL, planned(request))}


def test_a_streamed_plan_gains_from_each_and_never_loses() -> None:
    changes = changes_of(Request(batch_size=8, new_tokens=4))
    assert set(changes) == {
        "one GiB more on each GPU",
        "twice the host-GPU bandwidth",
        "twice the host memory",
        "int8 weights, if decoding cost nothing",
    }
    assert all(change.possible and change.speedup >= 0.999 for change in changes.values())
    # Most of the time goes to copying weights: half the time with twice the bandwidth, not less than half.
    assert 1.3 < changes["twice the host-GPU bandwidth"].speedup <= 2.0
    assert changes["int8 weights, if decoding cost nothing"].speedup > 1.5


def test_a_batch_that_was_asked_for_stays() -> None:
    """Otherwise the best batch, which was ruled out, would be the gain of a GiB."""
    best = planned(FREE_BATCH).prediction
    request = msgspec.structs.replace(FREE_BATCH, batch_size=8)
    plan = planned(request)
    assert best.tokens_per_s > 1.2 * plan.prediction.tokens_per_s
    changes = changes_of(request)
    assert all(change.batch_size == plan.workload.batch_size for change in changes.values())
    assert changes["one GiB more on each GPU"].speedup < 1.2


def test_a_limit_on_the_latency_is_part_of_the_request_that_is_repeated() -> None:
    """Under a limit a faster link allows a larger batch: as planning for that machine says, no less."""
    profile = load("t4")
    limit = planned(FREE_BATCH).prediction.total_s / 2
    bound = msgspec.structs.replace(FREE_BATCH, max_latency_s=limit)
    plan = planned(bound)
    assert plan.request == bound
    changes = changes_of(bound)
    assert profile.host_to_device is not None
    link = profile.host_to_device.pinned_bytes_per_s.value
    again = make_plan(MODEL, apply(profile, link_bytes_per_s=2 * link), bound)
    faster = changes["twice the host-GPU bandwidth"]
    assert again.prediction.total_s <= limit
    assert faster.batch_size == again.workload.batch_size > plan.workload.batch_size
    assert faster.speedup == again.prediction.tokens_per_s / plan.prediction.tokens_per_s > 1.3


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_what_it_says_is_what_planning_for_the_changed_machine_says(objective: str) -> None:
    """The best batch stays free where it was free."""
    profile = load("t4")
    request = msgspec.structs.replace(FREE_BATCH, objective=objective)
    plan, changes = planned(request), changes_of(request)
    assert profile.gpu is not None
    assert profile.host_to_device is not None
    machines: dict[str, dict[str, Any]] = {
        "one GiB more on each GPU": {"gpu_memory_bytes": round(profile.gpu.memory_bytes.value) + 2**30},
        "twice the host-GPU bandwidth": {
            "link_bytes_per_s": 2 * profile.host_to_device.pinned_bytes_per_s.value
        },
        "twice the host memory": {"cpu_memory_bytes": 2 * round(profile.host.memory_bytes.value)},
    }
    # A throughput is planned at many batches: one machine is enough for it.
    names = machines if objective == "latency" else ("twice the host-GPU bandwidth",)
    for what, change in ((name, machines[name]) for name in names):
        found = make_plan(MODEL, apply(profile, **change), request)
        said = changes[what]
        assert (said.label, said.batch_size) == (found.label, found.workload.batch_size)
        assert said.tokens_per_s == found.prediction.tokens_per_s
        assert said.speedup == pytest.approx(found.prediction.tokens_per_s / plan.prediction.tokens_per_s)


def test_links_between_gpus_are_a_change_where_there_are_several() -> None:
    graph = load_model("llama-2-13b").graph
    model = Model(name="llama-2-13b", auto_class="causal-lm", dtype="float16", graph=graph)
    plan = make_plan(
        model, load("4xt4"), Request(runtimes=("deepspeed-tp",), new_tokens=4, prompt_tokens=512)
    )
    (change,) = [
        change for change in what_if(model, plan) if change.what == "twice the bandwidth between GPUs"
    ]
    communication = sum(part.communication for part in plan.prediction.time.values())
    assert communication > 0
    assert change.speedup > 1.0


def test_a_disk_is_a_change_where_something_is_read_from_it() -> None:
    profile = apply(load("t4"), cpu_memory_bytes=8 * 2**30)
    plan = make_plan(MODEL, profile, Request(runtimes=("accelerate",), new_tokens=4))
    assert any(placement.stored_on == "disk" for placement in plan.placements)
    changes = {change.what: change for change in what_if(MODEL, plan)}
    # The disk is the bound here, and its link to the GPU is not.
    assert changes["twice the disk's rate"].speedup > 1.5 > changes["twice the host-GPU bandwidth"].speedup
    resident = make_plan(MODEL, load("a100-80g"), Request(runtimes=("accelerate",), new_tokens=4))
    assert "twice the disk's rate" not in {change.what for change in what_if(MODEL, resident)}


@pytest.mark.parametrize("machine, half", [("t4", "float16"), ("a100-80g", "bfloat16")])
def test_a_plan_in_float32_is_asked_for_in_16_bits(machine: str, half: str) -> None:
    profile = load(machine)
    request = Request(runtimes=("accelerate",), new_tokens=4, dtype="float32")
    plan = make_plan(MODEL, profile, request)
    changes = {change.what: change for change in what_if(MODEL, plan)}
    found = make_plan(MODEL, profile, msgspec.structs.replace(request, dtype=half))
    said = changes[f"everything in {half}"]
    assert said.decode_s == found.prediction.time["decode"].total
    assert said.speedup > 1.0
    assert not [what for what in (c.what for c in what_if(MODEL, found)) if what.startswith("everything in")]


def test_weights_that_are_quantized_already_are_not_quantized_again() -> None:
    changes = changes_of(Request(runtimes=("zero-inference",), weight_bits=8, new_tokens=4))
    assert changes
    assert not [what for what in changes if "int8" in what]


def test_int8_halves_the_blocks_and_nothing_else() -> None:
    def num_bytes(model: Model, *, blocks: bool) -> int:
        return sum(
            tensor.num_elements * (1 if tensor.dtype == "int8" else 2)
            for node in model.graph.nodes
            for tensor in node.tensors
            if (node.block is not None) == blocks and len(tensor.shape) > 1
        )

    narrow = int8_weights(MODEL)
    assert num_bytes(narrow, blocks=True) * 2 == num_bytes(MODEL, blocks=True)
    assert num_bytes(narrow, blocks=False) == num_bytes(MODEL, blocks=False)


def test_a_change_is_judged_among_the_runtimes_that_were_asked_for() -> None:
    """Otherwise a runtime that was ruled out would be the gain of a GiB."""
    changes = changes_of(Request(runtimes=("zero-inference",), new_tokens=4))
    assert changes
    assert all("ZeRO-Inference" in change.label for change in changes.values())
