"""Prices a written plan again, at any batch size and lengths. Pure."""

from typing import Final

from planner.bench.rows import Predicted
from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.memory import memory
from planner.cost.predict import predict
from planner.cost.problem import Problem
from planner.cost.runtime_model import RuntimeModel, Scenario
from planner.graph.schema import ModuleGraph
from planner.hardware.overrides import apply
from planner.runtimes.registry import runtime_models
from planner.schema.breakdown import shortage
from planner.schema.plan import Plan, Prediction
from planner.schema.workload import Workload

#: Upper limit of the search for the largest batch size.
_LARGEST: Final = 2**20


def repriced(
    plan: Plan,
    graph: ModuleGraph,
    workload: Workload,
    *,
    memory_cap_bytes: int | None = None,
    runtime_model: RuntimeModel | None = None,
) -> tuple[Problem, Assignment]:
    """Price the plan's placement under another workload.

    Args:
        plan: a written plan; its execution configuration is kept.
        graph: module graph of the plan's model.
        workload: the batch size counts the sequences of all streams together.
        memory_cap_bytes: memory of each GPU that replaces the profile's; None: the profile's.
        runtime_model: the runtime model to price with, where a user's configuration sets buffer sizes; None:
            the model of the plan's runtime.

    Returns:
        The priced problem, and the plan's placement in it.

    Raises:
        UnknownNameError: the plan's runtime is unknown.
    """
    profile = plan.hardware
    if memory_cap_bytes is not None and profile.gpu is not None:
        profile = apply(profile, gpu_memory_bytes=memory_cap_bytes)
    if runtime_model is None:
        (runtime_model,) = runtime_models([plan.runtime])
    problem = price(Scenario.whole(graph, profile, workload, plan.execution, runtime_model).of_one_rank())
    return problem, assignment_of(plan, problem)


def predicted(problem: Problem, assignment: Assignment) -> Predicted:
    """The prediction for a placement, in the format of a benchmark row."""
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
    """The plan's placement as an assignment of the problem's units."""
    places = {p.module: (p.stored_on, p.runs_on) for p in plan.placements}
    main = problem.scenario.execution.main
    runs_on, stored_on = [], []
    for unit in problem.units:
        leaf_places = [
            next((places[entry] for entry in leaf.leaf.entries if entry in places), None)
            for leaf in unit.leaves
        ]
        device = next((place[1] for place in leaf_places if place is not None), main)
        runs_on.append(device)
        stored_on.append(tuple(device if place is None else place[0] for place in leaf_places))
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
    """The largest batch size that the cost model predicts to fit with the plan's placement.

    Memory grows with the batch size, so bisection finds it.

    Args:
        plan: a written plan; its placement and execution configuration are kept.
        graph: module graph of the plan's model.
        workload: lengths and dtype; its batch size is ignored.
        memory_cap_bytes: memory of each GPU that replaces the profile's; None: the profile's.

    Returns:
        Sequences of all streams together; 0 when not even one fits.

    Raises:
        UnknownNameError: the plan's runtime is unknown.
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
