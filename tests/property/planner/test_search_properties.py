"""The search against brute force and against itself, on hand-made graphs."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment
from planner.cost.memory import memory
from planner.cost.problem import Problem
from planner.cost.time import objective_s, time
from planner.errors import InfeasibleError
from planner.graph.model import Model
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.runtimes.accelerate.model import RUNTIME_MODEL
from planner.schema.breakdown import shortage
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.best_placement import best_placement
from planner.search.choose import make_plan

_MIB = 2**20


def _machine(*, gpu_mib: float, host_mib: float, disk: bool, num_gpus: int = 1) -> HardwareProfile:
    """A T4 host with capacities beyond what processes and contexts take, so that small numbers bind."""
    base = load("t4")
    assert base.gpu is not None
    gpu = msgspec.structs.replace(
        base.gpu, memory_bytes=_given(base.gpu.context_bytes.value + (128 + gpu_mib) * _MIB)
    )
    host = msgspec.structs.replace(base.host, memory_bytes=_given((3072 + 128 + host_mib) * _MIB))
    profile = msgspec.structs.replace(base, gpu=gpu, host=host, disk=base.disk if disk else None)
    return profile if num_gpus == 1 else apply(profile, num_gpus=num_gpus)


def _given(value: float) -> Quantity:
    return Quantity(value=value, source=Source.ASSUMED, note="test")


def _problem(graph: ModuleGraph, profile: HardwareProfile, batch: int, *, cpu_execution: bool) -> Problem:
    workload = Workload(batch_size=batch, prompt_tokens=64, new_tokens=8, dtype="float16")
    way = ExecutionConfig(
        runtime="accelerate",
        label="test",
        main="gpu:0",
        host_copies="pinned",
        cpu_execution=cpu_execution,
        streams_from=("cpu",) if profile.disk is None else ("cpu", "disk"),
    )
    return problem_of(graph, profile, workload, way, RUNTIME_MODEL)


def _brute_force(problem: Problem) -> float | None:
    """The least time over every assignment of one GPU, by trying them all."""
    options = []
    for unit in problem.units:
        on_gpu = [
            ("gpu:0", stored_on)
            for stored_on in itertools.product(
                ("gpu:0", *problem.scenario.execution.streams_from), repeat=len(unit.leaves)
            )
        ]
        on_cpu = []
        if problem.scenario.execution.cpu_execution:
            # Beside a GPU, a block that executes on the CPU lives there whole: it is one entry of the map.
            on_cpu = [("cpu", ("cpu",) * len(unit.leaves))] if unit.unit.is_block else []
        options.append(on_gpu + on_cpu)
    best = None
    for choice in itertools.product(*options):
        assignment = Assignment(
            runs_on=tuple(runs_on for runs_on, _ in choice),
            stored_on=tuple(stored_on for _, stored_on in choice),
        )
        # Accelerate takes the first GPU in the map for the main device, so something must live there.
        if (
            any("gpu:0" in stored_on for stored_on in assignment.stored_on)
            and shortage(memory(problem, assignment)) is None
        ):
            seconds = objective_s(problem, time(problem, assignment))
            best = seconds if best is None else min(best, seconds)
    return best


@settings(max_examples=25, deadline=None)
@given(
    gpu_mib=st.floats(2, 40),
    host_mib=st.floats(2, 40),
    batch=st.integers(1, 6),
    cpu_execution=st.booleans(),
    disk=st.booleans(),
)
def test_equals_brute_force_on_small_graphs(
    gpu_mib: float, host_mib: float, batch: int, cpu_execution: bool, disk: bool
) -> None:
    # One wide and one narrow block of three leaves, embedding and head: up to 5 · (27 + 8)² · 5 choices,
    # so the leaves of a block are kept few. 256-wide blocks weigh 1.5 to 2.5 MiB in half precision.
    graph = layered_graph(2 if not disk else 1, hidden=256, vocabulary=4096, wide_every=2)
    problem = _problem(
        graph, _machine(gpu_mib=gpu_mib, host_mib=host_mib, disk=disk), batch, cpu_execution=cpu_execution
    )
    expected = _brute_force(problem)
    found = best_placement(problem)
    if expected is None:
        assert found is None
        return
    if found is None:
        # The search keeps 1 MiB of each capacity free; brute force does not.
        roomy = _problem(
            graph,
            _machine(gpu_mib=gpu_mib + 1.1, host_mib=host_mib + 1.1, disk=disk),
            batch,
            cpu_execution=cpu_execution,
        )
        assert best_placement(roomy) is not None
        return
    assert found.total_s >= expected * (1 - 1e-9)
    roomy = _problem(
        graph,
        _machine(gpu_mib=gpu_mib + 1.1, host_mib=host_mib + 1.1, disk=disk),
        batch,
        cpu_execution=cpu_execution,
    )
    with_margin = best_placement(roomy)
    assert with_margin is not None
    assert with_margin.total_s <= expected * (1 + 1e-5)


@settings(max_examples=30, deadline=None)
@given(
    layers=st.integers(1, 12),
    gpu_mib=st.floats(8, 200),
    host_mib=st.floats(8, 300),
    num_gpus=st.sampled_from([1, 2, 4]),
    objective=st.sampled_from(["latency", "throughput"]),
    tied=st.booleans(),
)
def test_a_plan_never_exceeds_a_capacity_and_more_memory_never_hurts(
    layers: int, gpu_mib: float, host_mib: float, num_gpus: int, objective: str, tied: bool
) -> None:
    graph = layered_graph(layers, hidden=512, vocabulary=8192, tied=tied, wide_every=3)
    model = Model(name="layered", auto_class="causal-lm", dtype="float16", graph=graph)
    request = Request(prompt_tokens=64, new_tokens=8, objective=objective, runtimes=("accelerate",))
    small = _machine(gpu_mib=gpu_mib, host_mib=host_mib, disk=False, num_gpus=num_gpus)
    large = _machine(gpu_mib=gpu_mib * 1.3, host_mib=host_mib * 1.3, disk=False, num_gpus=num_gpus)
    try:
        plan = make_plan(model, small, request)
    except InfeasibleError as error:
        assert error.deficit_bytes > 0
        return
    for phases in plan.prediction.memory.values():
        for part in phases.values():
            assert part.total <= part.capacity
    better = make_plan(model, large, request)
    if objective == "latency":
        assert better.prediction.total_s <= plan.prediction.total_s * (1 + 1e-5)
    else:
        assert better.prediction.tokens_per_s >= plan.prediction.tokens_per_s * (1 - 1e-5)


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_every_module_is_placed_once(objective: str) -> None:
    graph = layered_graph(6, hidden=512, vocabulary=8192, tied=True)
    model = Model(name="layered", auto_class="causal-lm", dtype="float16", graph=graph)
    plan = make_plan(
        model,
        _machine(gpu_mib=20, host_mib=400, disk=False),
        Request(prompt_tokens=64, new_tokens=8, objective=objective),
    )
    assert sorted(p.module for p in plan.placements) == sorted(n.name for n in graph.nodes)
    # A tied tensor is one: embedding and head share a place.
    place = {p.module: p.stored_on for p in plan.placements}
    assert place["embed"] == place["head"]
