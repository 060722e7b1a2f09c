"""One sum of memory: evaluation, the integer program's linear terms and the stages agree to the byte."""

import msgspec
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment, kind_of, leaves
from planner.cost.memory import least_peak, memory, runtime_term, stored_weights
from planner.cost.memory_terms import TRANSIENT_FACTOR, MemoryTerm, largest
from planner.cost.problem import CPU, Problem
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.runtimes.registry import RUNTIME_MODELS
from planner.schema.breakdown import PHASES, MemoryBreakdown, shortage
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source
from planner.schema.workload import Workload
from planner.search.placement_program import solve
from planner.search.stages import fill_from_end, fits

MIB = 2**20
MACHINES = (load("t4"), apply(load("t4"), num_gpus=3), load("cpu-16c-64g"))
CONFIGURATIONS = [
    (profile, execution)
    for profile in MACHINES
    for name in ("accelerate", "zero-inference", "cpu")
    for execution in RUNTIME_MODELS[name].configurations(profile)
    # Which weights of this model DeepSpeed would quantize is another question.
    if execution.weight_bits is None
]


def _with_room(
    profile: HardwareProfile, execution: ExecutionConfig, gpu_mib: float, host_mib: float
) -> HardwareProfile:
    """The machine with so much beyond what processes, contexts and the allocator's floors take."""

    def given_bytes(value: float) -> Quantity:
        return Quantity(value=value, source=Source.ASSUMED, note="test")

    process_mib = 3072 if profile.num_gpus else 1024
    host_bytes = (execution.num_ranks * process_mib + 96 + host_mib) * MIB
    host = msgspec.structs.replace(profile.host, memory_bytes=given_bytes(host_bytes))
    gpu = profile.gpu
    if gpu is not None:
        gpu_bytes = gpu.context_bytes.value + (96 + gpu_mib) * MIB
        gpu = msgspec.structs.replace(gpu, memory_bytes=given_bytes(gpu_bytes))
    return msgspec.structs.replace(profile, host=host, gpu=gpu)


@st.composite
def problems(draw: st.DrawFn, configurations: list[tuple[HardwareProfile, ExecutionConfig]]) -> Problem:
    graph = layered_graph(
        draw(st.integers(1, 5)),
        hidden=draw(st.sampled_from([64, 320])),
        vocabulary=draw(st.sampled_from([100, 4000])),
        tied=draw(st.booleans()),
        kv_per_token=draw(st.sampled_from([None, 0, 77, 4000])),
        wide_every=draw(st.integers(0, 3)),
    )
    workload = Workload(
        batch_size=draw(st.integers(1, 40)),
        prompt_tokens=draw(st.integers(1, 100)),
        new_tokens=draw(st.integers(1, 40)),
        dtype=draw(st.sampled_from(["float16", "float32"])),
    )
    profile, execution = draw(st.sampled_from(configurations))
    execution = msgspec.structs.replace(execution, keeps_host_pages=draw(st.booleans()))
    machine = _with_room(profile, execution, draw(st.floats(0, 60)), draw(st.floats(0, 120)))
    return problem_of(graph, machine, workload, execution, RUNTIME_MODELS[execution.runtime])


@st.composite
def assignments(draw: st.DrawFn, problem: Problem) -> Assignment:
    """Any choice that a device map could state."""
    execution = problem.scenario.execution
    devices = [*problem.capacities]
    if not (execution.cpu_execution or execution.main == CPU):
        devices.remove(CPU)
    runs_on, stored_on = [], []
    for unit in problem.units:
        device = draw(st.sampled_from(devices))
        # Modules are streamed to the main device only; beside a GPU the processor runs what it stores.
        places = [device, *execution.streams_from] if device == execution.main else [device]
        runs_on.append(device)
        stored_on.append(tuple(draw(st.sampled_from(places)) for _ in unit.leaves))
    return Assignment(runs_on=tuple(runs_on), stored_on=tuple(stored_on))


def charged_bytes(problem: Problem, assignment: Assignment, device: str, phase: str) -> float:
    """What the linear terms charge a device's capacity, as a row of the integer program adds them up.

    Every unit is resident on its device; a leaf that is stored elsewhere is taken off again and charged
    there. The peak of what follows each other is a variable of its own.
    """
    units = [
        unit for unit, runs_on in zip(problem.units, assignment.runs_on, strict=True) if runs_on == device
    ]
    placed = list(leaves(problem, assignment))
    terms = [unit.resident(kind_of(device), phase) for unit in units]
    terms += [
        stored_weights(problem, leaf, stored_on, runs_on)
        for runs_on, leaf, stored_on in placed
        if stored_on == device != runs_on
    ]
    freed = [
        stored_weights(problem, leaf, device, device)
        for runs_on, leaf, stored_on in placed
        if runs_on == device != stored_on
    ]
    streams = any(runs_on != stored_on for runs_on, _, stored_on in placed)
    terms.append(runtime_term(problem, units, device, phase, streams=streams))
    staged = largest(
        leaf.streamed_peak[phase] for runs_on, leaf, stored_on in placed if runs_on == device != stored_on
    )
    peak = max(least_peak(problem, units, device, phase), staged)
    total = MemoryTerm.total(terms).charged_bytes - MemoryTerm.total(freed).charged_bytes
    return total + TRANSIENT_FACTOR * peak


@settings(max_examples=200)
@given(st.data())
def test_evaluation_is_the_sum_of_the_linear_terms(data: st.DataObject) -> None:
    problem = data.draw(problems(CONFIGURATIONS))
    assignment = data.draw(assignments(problem))
    execution = problem.scenario.execution
    evaluated = memory(problem, assignment)
    # Every rank's GPU is as the main device of this one.
    alike = {f"gpu:{rank}": execution.main for rank in range(1, execution.num_ranks)}
    compared = 0
    for device, phases in evaluated.items():
        if device == "disk":
            continue
        mine = alike.get(device, device) if execution.main != CPU else device
        available = problem.capacities[mine].available_bytes
        for phase in PHASES:
            left = available - charged_bytes(problem, assignment, mine, phase)
            free = phases[phase].free
            if execution.keeps_host_pages and device == execution.main == CPU:
                # Pages that are kept take what is free, and never more.
                assert free <= left + 1
                assert (free >= 0) == (left >= -1)
            else:
                # The allocator's share is rounded once.
                assert abs(free - left) <= 1
            compared += 1
    event(f"{execution.runtime}, fits: {shortage(evaluated) is None}")
    assert compared == 2 * len(evaluated.keys() - {"disk"}) >= 2


@settings(max_examples=100)
@given(problems([one for one in CONFIGURATIONS if one[1].streams_from]))
def test_what_the_integer_program_places_fits(problem: Problem) -> None:
    staged = fill_from_end(problem, problem.scenario.num_stages) if problem.main_kind == "gpu" else {}
    placed = solve(problem, staged)
    if placed is None:
        event("nothing fits")
        return
    event("placed")
    assert placed.shortage_bytes == {}
    assert shortage(memory(problem, placed.assignment)) is None
    assert all(placed.assignment.runs_on[index] == device for index, device in staged.items())


@settings(max_examples=100)
@given(st.data())
def test_a_stage_holds_what_evaluation_says_it_holds(data: st.DataObject) -> None:
    """The last units on the second GPU, whatever the first one streams."""
    pipelines = [one for one in CONFIGURATIONS if one[1].runtime == "accelerate" and one[0].num_gpus > 1]
    problem = data.draw(problems(pipelines))
    count = data.draw(st.integers(1, len(problem.units)))
    rest = data.draw(assignments(problem))
    first = len(problem.units) - count
    places = [
        ("gpu:0", tuple(place if place in ("cpu", "disk") else "gpu:0" for place in stored_on))
        for stored_on in rest.stored_on[:first]
    ]
    places += [("gpu:1", ("gpu:1",) * len(unit.leaves)) for unit in problem.units[first:]]
    assignment = Assignment(
        runs_on=tuple(device for device, _ in places), stored_on=tuple(stored for _, stored in places)
    )
    phases: dict[str, MemoryBreakdown] = memory(problem, assignment)["gpu:1"]
    is_enough = all(part.free >= 0 for part in phases.values())
    event(f"fits: {is_enough}")
    assert fits(problem, "gpu:1", problem.units[first:]) == is_enough
