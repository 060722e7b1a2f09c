"""One sum of memory: what evaluation adds up is what the terms charge, and so what the search optimises."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment, kind_of, leaves
from planner.cost.memory import least_peak, memory, runtime_term, shortage, stored_weights
from planner.cost.memory_terms import TRANSIENT_FACTOR, MemoryTerm, largest
from planner.cost.problem import CPU, DISK, Problem
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.runtimes.registry import RUNTIME_MODELS
from planner.schema.breakdown import PHASES
from planner.schema.workload import Workload
from planner.search.placement_program import solve
from planner.search.stages import fill_from_end, fits

MACHINES = ("t4", "v100-16g", "2xt4", "4xa100-80g")
RUNTIMES = ("accelerate", "zero-inference", "cpu")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A small model in a random configuration, on a machine with so little memory that it may not fit."""
    machine = load(draw(st.sampled_from(MACHINES)))
    runtime = RUNTIME_MODELS[draw(st.sampled_from(RUNTIMES))]
    executions = [one for one in runtime.configurations(machine) if one.weight_bits is None]
    graph = layered_graph(
        draw(st.integers(1, 6)),
        hidden=draw(st.sampled_from((64, 1024, 4096))),
        vocabulary=draw(st.sampled_from((256, 50272))),
    )
    context = round(machine.gpu.context_bytes.value) if machine.gpu is not None else 0
    small = apply(machine, gpu_memory_bytes=context + draw(st.integers(100 << 20, 4 << 30)))
    workload = Workload(
        batch_size=draw(st.integers(1, 64)),
        prompt_tokens=draw(st.integers(1, 512)),
        new_tokens=draw(st.integers(1, 64)),
        dtype="float16" if machine.gpu is not None and runtime.name != "cpu" else "float32",
    )
    return problem_of(graph, small, workload, draw(st.sampled_from(executions)), runtime)


@st.composite
def assignments(draw: st.DrawFn, problem: Problem) -> Assignment:
    """Any place for every leaf that its runtime could be told."""
    execution = problem.scenario.execution
    runs_on, stored_on = [], []
    for unit in problem.units:
        can_leave = execution.cpu_execution and CPU in unit.work
        device = draw(st.sampled_from((execution.main, *([CPU] if can_leave else []))))
        places = (device, *(execution.streams_from if device == execution.main else ()))
        runs_on.append(device)
        stored_on.append(tuple(draw(st.sampled_from(places)) for _ in unit.leaves))
    return Assignment(runs_on=tuple(runs_on), stored_on=tuple(stored_on))


@st.composite
def assigned(draw: st.DrawFn) -> tuple[Problem, Assignment]:
    problem = draw(problems())
    return problem, draw(assignments(problem))


def charged(problem: Problem, assignment: Assignment, device: str, phase: str) -> float:
    """What the terms take of a device's capacity, as the integer program adds them up."""
    here = [u for u, runs_on in zip(problem.units, assignment.runs_on, strict=True) if runs_on == device]
    placed = list(leaves(problem, assignment))
    streams = any(stored != runs for runs, _, stored in placed)
    terms = [unit.memory[kind_of(device)][phase] for unit in here]
    terms += [
        stored_weights(problem, leaf, stored, runs) for runs, leaf, stored in placed if stored == device
    ]
    terms.append(runtime_term(problem, here, device, phase, streams=streams))
    staged = largest(
        leaf.streamed_peak[phase] for runs, leaf, stored in placed if runs == device and stored != runs
    )
    peak = max(least_peak(problem, here, device, phase), staged)
    return MemoryTerm.total(terms).charged_bytes + TRANSIENT_FACTOR * peak


@settings(max_examples=150, deadline=None)
@given(assigned())
def test_evaluation_and_terms_are_one_sum(drawn: tuple[Problem, Assignment]) -> None:
    problem, assignment = drawn
    by_device = memory(problem, assignment)
    keeps_pages = problem.scenario.execution.keeps_host_pages and problem.scenario.execution.main == CPU
    compared = 0
    for device, capacity in problem.capacities.items():
        if device not in by_device or (keeps_pages and device == CPU):
            continue
        for phase in PHASES:
            free = capacity.available_bytes - charged(problem, assignment, device, phase)
            # Slack and an offloaded cache's layers are rounded to whole bytes.
            assert abs(by_device[device][phase].free - free) <= 2
            compared += 1
    assert compared or keeps_pages


@settings(max_examples=60, deadline=None)
@given(problems())
def test_what_the_program_places_fits_by_evaluation(problem: Problem) -> None:
    if not problem.scenario.execution.streams_from:
        return
    staged = fill_from_end(problem, problem.scenario.num_stages) if problem.main_kind == "gpu" else {}
    placed = solve(problem, staged)
    if placed is not None:
        lack = shortage(memory(problem, placed.assignment))
        assert lack is None or lack.device == DISK


@settings(max_examples=60, deadline=None)
@given(problems())
def test_stages_are_filled_by_the_same_sum(problem: Problem) -> None:
    """What fits on another GPU of a pipeline fits there by evaluation, and the next unit does not."""
    if problem.main_kind != "gpu" or problem.scenario.num_stages < 2:
        return
    staged = fill_from_end(problem, 2)
    main = problem.scenario.execution.main
    runs_on = tuple(staged.get(index, main) for index in range(len(problem.units)))
    stored_on = tuple((d,) * len(u.leaves) for d, u in zip(runs_on, problem.units, strict=True))
    assignment = Assignment(runs_on=runs_on, stored_on=stored_on)
    on_second = [unit for index, unit in enumerate(problem.units) if index in staged]
    by_evaluation = memory(problem, assignment).get("gpu:1", {})
    assert fits(problem, "gpu:1", on_second) or not on_second
    assert all(part.free >= 0 for part in by_evaluation.values())
