"""The search on stores of ZeRO-Inference: what it returns fits, and it finds what there is."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment
from planner.cost.memory import memory
from planner.cost.problem import Problem
from planner.cost.time import objective_s, time
from planner.hardware.load import load
from planner.runtimes.zero_inference.model import RUNTIME_MODEL
from planner.schema.breakdown import shortage
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source
from planner.schema.workload import Workload
from planner.search.best_placement import best_placement

MACHINE = load("8xa100-80g")
MIB = 2**20


def machine(gpu_mib: int, host_mib: int) -> HardwareProfile:
    """The machine with so much beyond what contexts and eight processes take."""
    assert MACHINE.gpu is not None

    def bytes_of(value: float) -> Quantity:
        return Quantity(value=value, source=Source.ASSUMED, note="test")

    context = MACHINE.gpu.context_bytes.value
    gpu = msgspec.structs.replace(MACHINE.gpu, memory_bytes=bytes_of(context + (128 + gpu_mib) * MIB))
    host = msgspec.structs.replace(MACHINE.host, memory_bytes=bytes_of((8 * 3072 + 128 + host_mib) * MIB))
    return msgspec.structs.replace(MACHINE, gpu=gpu, host=host)


def placed(problem: Problem, place: str) -> Assignment:
    """Everything in one place."""
    return Assignment(
        runs_on=("gpu:0",) * len(problem.units),
        stored_on=tuple((place,) * len(unit.leaves) for unit in problem.units),
    )


@settings(max_examples=60, deadline=None)
@given(
    way=st.sampled_from(RUNTIME_MODEL.configurations(MACHINE)),
    num_layers=st.integers(1, 6),
    gpu_mib=st.integers(0, 300),
    host_mib=st.integers(0, 700),
    batch_size=st.integers(1, 40),
)
def test_a_placement_that_fits_is_found_and_is_no_slower(
    way: ExecutionConfig, num_layers: int, gpu_mib: int, host_mib: int, batch_size: int
) -> None:
    graph = layered_graph(num_layers, hidden=1024, vocabulary=8000)
    workload = Workload(batch_size=batch_size, prompt_tokens=64, new_tokens=8, dtype="float16")
    profile = machine(gpu_mib, host_mib)
    problem = problem_of(graph, profile, workload, way, RUNTIME_MODEL)
    best = best_placement(problem)
    for place in (*way.streams_from, "gpu:0"):
        everything = placed(problem, place)
        lack = shortage(memory(problem, everything))
        # The search keeps a margin of its own, in whole MiB.
        if lack is None and all(
            part.free > 8 * MIB for phases in memory(problem, everything).values() for part in phases.values()
        ):
            assert best is not None, place
            assert best.total_s <= objective_s(problem, time(problem, everything)) * (1 + 1e-9)
    if best is not None:
        for phases in memory(problem, best.assignment).values():
            for part in phases.values():
                assert part.total <= part.capacity
