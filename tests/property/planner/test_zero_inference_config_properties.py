"""Any plan's DeepSpeed configuration is taken whole by DeepSpeed, and keeps what the plan keeps."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.runtime_model import Scenario
from planner.graph.model import Model
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.runtimes.zero_inference.config import ds_config
from planner.runtimes.zero_inference.model import RUNTIME_MODEL
from planner.runtimes.zero_inference.parameters import marked, parameters, resident
from planner.runtimes.zero_inference.quantization import packed
from planner.runtimes.zero_inference.validate import findings, problems, zero_block
from planner.schema.plan import Plan
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.best_placement import PricedPlacement
from planner.search.choose import plan_of

MACHINE = load("8xa100-80g")


@st.composite
def graphs(draw: st.DrawFn) -> ModuleGraph:
    return layered_graph(
        draw(st.integers(1, 5)),
        hidden=draw(st.sampled_from((8, 64, 1000))),
        vocabulary=draw(st.integers(3, 5000)),
        tied=draw(st.booleans()),
        wide_every=draw(st.integers(0, 2)),
    )


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, ModuleGraph]:
    """A plan with any store, number of ranks and residency that the law knows."""
    graph = draw(graphs())
    way = draw(st.sampled_from(RUNTIME_MODEL.configurations(MACHINE)))
    dtype = "float16" if way.weight_bits else draw(st.sampled_from(("float16", "bfloat16", "float32")))
    sequences = draw(st.integers(1, 40))
    workload = Workload(batch_size=sequences, prompt_tokens=8, new_tokens=2, dtype=dtype)
    problem = price(Scenario.whole(graph, MACHINE, workload, way, RUNTIME_MODEL).of_one_rank())
    stored_on = tuple(
        tuple(draw(st.sampled_from(("gpu:0", *way.streams_from))) for _ in unit.leaves)
        for unit in problem.units
    )
    assignment = Assignment(runs_on=("gpu:0",) * len(stored_on), stored_on=stored_on)
    priced = PricedPlacement(problem=problem, assignment=assignment, total_s=1.0, shortage_bytes={})
    model = Model(name="layered", auto_class="causal-lm", dtype=dtype, graph=graph)
    return plan_of(model, priced, Request.of_workload(workload, way)), graph


@settings(max_examples=150, deadline=None)
@given(plans())
def test_deepspeed_takes_every_configuration_whole(drawn: tuple[Plan, ModuleGraph]) -> None:
    plan, graph = drawn
    config = ds_config(plan, graph)
    assert problems(config, num_ranks=plan.num_ranks) == []
    zero = zero_block(config)
    assert zero.stage == 3
    micro = config["train_micro_batch_size_per_gpu"]
    assert (micro - 1) * plan.num_streams < plan.workload.batch_size <= micro * plan.num_streams
    assert config.get("fp16", {}).get("enabled", False) == (plan.workload.dtype == "float16")
    assert config.get("bf16", {}).get("enabled", False) == (plan.workload.dtype == "bfloat16")


@settings(max_examples=150, deadline=None)
@given(plans())
def test_thresholds_and_buffers_are_large_enough(drawn: tuple[Plan, ModuleGraph]) -> None:
    plan, graph = drawn
    zero, held = zero_block(ds_config(plan, graph)), packed(graph, plan.weight_bits)
    found, kept = parameters(held), resident(plan, held)
    by_thresholds = marked(
        found, each=zero.param_persistence_threshold, together=zero.model_persistence_threshold
    )
    elements = {one.fqn: one.num_elements for one in found}
    places = {p.stored_on for p in plan.placements if p.stored_on != p.runs_on}
    if "disk" in places:
        assert by_thresholds <= {one.fqn for one in found if one.is_vector}
        offload = zero.offload_param
        assert offload.buffer_size >= max(one.partition_elements(plan.num_ranks) for one in found)
        assert offload.buffer_count >= 2
    else:
        # Never more of it than the plan has room for.
        assert sum(elements[name] for name in by_thresholds) <= sum(elements[name] for name in kept)
        sizes = {elements[name] for name in kept}
        if not any(one.num_elements <= max(sizes, default=0) for one in found if one.fqn not in kept):
            assert by_thresholds == kept


SPOILS = (
    ("zero_optimization", "zero_optimisation", "ignored", "did you mean 'zero_optimization'"),
    ("train_micro_batch_size_per_gpu", "train_micro_batch_size", "rejected", "needs to be provided"),
    ("zero_optimization.stage3_max_live_parameters", "stage3_max_live_parameter", "rejected", "did you mean"),
    ("zero_optimization.offload_param.buffer_size", "buffersize", "rejected", "did you mean 'buffer_size'"),
    ("zero_optimization.offload_param.nvme_path", None, "harmful", "nvme_path is missing"),
    ("aio.queue_depth", "queuedepth", "ignored", "did you mean 'queue_depth'"),
    ("fp16.enabled", "enable", "rejected", "fp16.enable; did you mean"),
)


def nvme_config() -> dict[str, object]:
    graph = layered_graph(2)
    (way,) = [
        s
        for s in RUNTIME_MODEL.configurations(load("a100-80g"))
        if s.streams_from == ("disk",) and s.kv_cache == "device"
    ]
    workload = Workload(batch_size=1, prompt_tokens=8, new_tokens=2, dtype="float16")
    problem = problem_of(graph, load("a100-80g"), workload, way, RUNTIME_MODEL)
    stored_on = tuple(("disk",) * len(unit.leaves) for unit in problem.units)
    assignment = Assignment(runs_on=("gpu:0",) * len(stored_on), stored_on=stored_on)
    priced = PricedPlacement(problem=problem, assignment=assignment, total_s=1.0, shortage_bytes={})
    model = Model(name="layered", auto_class="causal-lm", dtype="float16", graph=graph)
    return ds_config(plan_of(model, priced, Request.of_workload(workload, way)), graph)


@pytest.mark.parametrize("path, misspelt, kind, words", SPOILS)
def test_every_key_is_missed_or_rejected_when_it_is_misspelt(
    path: str, misspelt: str | None, kind: str, words: str
) -> None:
    config = copy.deepcopy(nvme_config())
    assert problems(config) == []
    *parents, key = path.split(".")
    block = config
    for parent in parents:
        block = block[parent]
    value = block.pop(key)
    if misspelt is not None:
        block[misspelt] = value
    found = [finding for finding in findings(config) if finding.kind == kind]
    assert any(words in finding.sentence for finding in found), found
    if misspelt is not None and kind == "ignored":
        assert any(repr(misspelt) in finding.sentence for finding in found)


@pytest.mark.parametrize("value", ["32", 32.0, 0, True, None])
def test_aio_numbers_of_another_type_are_named(value: object) -> None:
    config = nvme_config()
    config["aio"] = {"queue_depth": value}
    (found,) = findings(config)
    assert "aio.queue_depth" in found.sentence


def test_the_batch_of_all_ranks_must_be_their_sum() -> None:
    config = nvme_config() | {"train_batch_size": 8}
    assert problems(config, num_ranks=8) == []
    (sentence,) = problems(config, num_ranks=4)
    assert "train_batch_size is 8" in sentence
