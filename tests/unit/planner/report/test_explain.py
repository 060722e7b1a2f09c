"""Plans in words."""

import msgspec
import pytest

from fixtures.graphs import layered_graph
from planner.graph.model import Model
from planner.hardware.load import load
from planner.report.explain import bound, describe_modules, explain
from planner.schema.breakdown import TimeBreakdown
from planner.schema.request import Request
from planner.search.choose import make_plan
from planner.tracing.load import load_model


def _model() -> Model:
    graph = layered_graph(40, hidden=5120, vocabulary=50272)
    return Model(name="layered", auto_class="causal-lm", dtype="float16", graph=graph)


def test_whole_layers_are_folded_and_parts_are_named() -> None:
    everything = [f"h.{i}.{part}" for i in range(4) for part in ("attn", "mlp")] + ["head"]
    some = ["h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp", "h.3.attn", "head"]
    assert describe_modules(some, everything) == "head; h.{0-1,3} (attn); h.{0-1} (mlp)"
    assert describe_modules(everything, everything) == "head; h.{0-3}"


def test_it_says_where_why_what_bounds_and_what_lost() -> None:
    model = _model()
    plan = make_plan(model, load("t4"), Request(batch_size=8))
    said = explain(plan)
    assert sum(place.num_bytes for place in said.places) == 2 * model.graph.num_parameters
    streamed = [p for p in said.places if p.stored_on == "cpu" and p.runs_on == "gpu:0"]
    assert streamed
    assert "streamed from pinned copies" in streamed[0].why
    decode = next(b for b in said.bounds if b.phase == "decode")
    assert decode.part == "weight_movement"
    assert 0.5 < decode.share <= 1
    assert said.tightest is not None
    assert 0 <= said.tightest.free_bytes < said.tightest.capacity_bytes
    pageable = next(a for a in said.rejected if a.label == "accelerate, pageable host copies")
    assert "slower" in pageable.reason


def test_what_runs_beside_the_device_bounds_a_phase_where_it_takes_longer() -> None:
    """Parts add up, so compute that copies hide may look like the larger part; it is not the bound."""
    time = TimeBreakdown(compute=1.0, weight_movement=0.5, host_overhead=0.1)
    assert bound("decode", time).part == "compute"
    found = bound("decode", time, covers="weight_movement")
    assert found.part == "weight_movement"
    assert found.share == pytest.approx(1.5 / 1.6)
    assert (
        "copying streamed weights is 94 % of it (1.50 s, in parallel with 1.00 s of computation)"
        in found.sentence
    )
    host = bound("decode", TimeBreakdown(compute=0.047, host_overhead=0.021), covers="host_overhead")
    assert (host.part, host.share) == ("host_overhead", pytest.approx(1.0))
    # A few small modules that the host is slower with do not bound a phase.
    assert (
        bound("decode", TimeBreakdown(compute=1.0, host_overhead=0.01), covers="host_overhead").part
        == "compute"
    )
    assert bound("decode", TimeBreakdown(compute=1.0), covers="weight_movement").part == "compute"


def test_a_faster_gpu_changes_nothing_where_the_host_is_said_to_bound() -> None:
    """What the host takes beyond the kernels is its smaller part: it works while they do, too."""
    graph = load_model("gpt-j-6b").graph
    model = Model(name="gpt-j-6b", auto_class="causal-lm", dtype="float16", graph=graph)
    profile = load("a100-80g")
    plan = make_plan(model, profile, Request(runtimes=("accelerate",)))
    decode = next(b for b in explain(plan).bounds if b.phase == "decode")
    assert decode.part == "host_overhead"
    assert profile.gpu is not None
    bandwidth = profile.gpu.memory_bandwidth_bytes_per_s
    faster = msgspec.structs.replace(
        profile.gpu,
        memory_bandwidth_bytes_per_s=msgspec.structs.replace(bandwidth, value=2 * bandwidth.value),
    )
    again = make_plan(model, msgspec.structs.replace(profile, gpu=faster), Request(runtimes=("accelerate",)))
    before, after = (one.prediction.time["decode"].total for one in (plan, again))
    assert after == pytest.approx(before, rel=0.05)


def test_copies_are_said_to_bound_zero_inference_and_a_faster_gpu_changes_little() -> None:
    model = _model()
    plan = make_plan(model, load("t4"), Request(runtimes=("zero-inference",), batch_size=4))
    decode = next(b for b in explain(plan).bounds if b.phase == "decode")
    time = plan.prediction.time["decode"]
    assert decode.part == "weight_movement"
    assert decode.share == pytest.approx((time.weight_movement + time.compute) / time.total)
