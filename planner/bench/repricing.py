"""A written plan as a priced problem again, at any batch and lengths. Pure."""

from typing import Final

from planner.bench.rows import Predicted
from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.memory import memory, shortage
from planner.cost.predict import predict
from planner.cost.problem import Problem
from planner.cost.runtime_model import RuntimeModel, Scenario
from planner.graph.schema import ModuleGraph
from planner.hardware.overrides import apply
from planner.runtimes.registry import runtime_models
from planner.schema.plan import Plan, Prediction
from planner.schema.workload import Workload

#: No batch beyond this is tried.
_LARGEST: Final = 2**20


def repriced(
    plan: Plan,
    graph: ModuleGraph,
    workload: Workload,
    *,
    memory_cap_bytes: int | None = None,
    runtime_model: RuntimeModel | None = None,
) -> tuple[Problem, Assignment]:
    """The plan's placement under another workload.

    Args:
        plan: written earlier; its execution configuration is kept.
        graph: of its model.
        workload: of all streams together.
        memory_cap_bytes: the GPUs' memory instead of the profile's.
        runtime_model: what it was priced with, where a user's configuration states sizes; None: the
            runtime's own.

    Raises:
        UnknownNameError: the plan names a runtime that is not known.
    """
    profile = plan.hardware
    if memory_cap_bytes is not None and profile.gpu is not None:
        profile = apply(profile, gpu_memory_bytes=memory_cap_bytes)
    if runtime_model is None:
        (runtime_model,) = runtime_models([plan.runtime])
    problem = price(Scenario.whole(graph, profile, workload, plan.execution, runtime_model).of_one_rank())
    return problem, assignment_of(plan, problem)


def predicted(problem: Problem, assignment: Assignment) -> Predicted:
    """The prediction in a row's terms."""
    prediction = predict(problem, assignment)
    return Predicted(
        load_s=prediction.load_s,
        prefill_s=prediction.time["prefill"].total,
        decode_s=prediction.time["decode"].total,
        tokens_per_s=prediction.tokens_per_s,
        gpu_bytes=_gpu_bytes(prediction),
        host_bytes=max(part.total for part in prediction.memory["cpu"].values()),
        fits=shortage(memory(problem, assignment)) is None,
        time=prediction.time,
        source=prediction.source,
    )


def assignment_of(plan: Plan, problem: Problem) -> Assignment:
    """Where the plan puts everything."""
    places = {p.module: (p.stored_on, p.runs_on) for p in plan.placements}
    main = problem.scenario.execution.main
    runs_on, stored_on = [], []
    for unit in problem.units:
        found = [
            next((places[entry] for entry in leaf.leaf.entries if entry in places), None)
            for leaf in unit.leaves
        ]
        runs = next((place[1] for place in found if place is not None), main)
        runs_on.append(runs)
        stored_on.append(tuple(runs if place is None else place[0] for place in found))
    return Assignment(runs_on=tuple(runs_on), stored_on=tuple(stored_on))


def _gpu_bytes(prediction: Prediction) -> tuple[int, ...]:
    gpus = sorted(
        (device for device in prediction.memory if device.startswith("gpu:")),
        key=lambda device: int(device.removeprefix("gpu:")),
    )
    return tuple(
        max(part.total - part.context for part in prediction.memory[device].values()) for device in gpus
    )


def largest_feasible(
    plan: Plan, graph: ModuleGraph, workload: Workload, *, memory_cap_bytes: int | None = None
) -> int:
    """The largest batch that the cost model calls feasible for the plan's placement; 0 when none is.

    Memory grows with the batch, so the border is found by halving.
    """

    def fits(batch: int) -> bool:
        problem, assignment = repriced(
            plan, graph, workload.with_batch(batch), memory_cap_bytes=memory_cap_bytes
        )
        return shortage(memory(problem, assignment)) is None

    low, high = 0, 1
    while high < _LARGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
