"""The prediction for one assignment: memory, time, throughput, price and loading."""

from planner.cost.assignment import Assignment, leaves
from planner.cost.memory import memory
from planner.cost.problem import DISK, Problem
from planner.cost.time import objective_s, time
from planner.schema.breakdown import PHASES
from planner.schema.plan import Prediction
from planner.schema.quantity import weakest


def predict(problem: Problem, assignment: Assignment) -> Prediction:
    """Memory and time of one assignment, and the throughput, price and load time that follow from them."""
    times = time(problem, assignment)
    total_s = objective_s(problem, times)
    workload = problem.scenario.workload
    tokens = problem.scenario.num_sequences * (
        workload.new_tokens if problem.scenario.graph.generates else workload.prompt_tokens
    )
    tokens_per_s = tokens / total_s if total_s > 0 else 0.0
    price = problem.scenario.profile.usd_per_hour
    sources = [times[phase].source for phase in PHASES]
    return Prediction(
        memory=memory(problem, assignment),
        time=times,
        total_s=total_s,
        tokens_per_s=tokens_per_s,
        usd_per_million_tokens=(
            price.value / 3600 / tokens_per_s * 1e6 if price is not None and tokens_per_s > 0 else None
        ),
        load_s=_load_s(problem, assignment),
        source=weakest(sources),
    )


def _load_s(problem: Problem, assignment: Assignment) -> float:
    """Seconds to read the checkpoint's part that does not stay on disk, and to fill the GPUs."""
    read = problem.buffers.unpacked + sum(
        leaf.stored_bytes
        for _, leaf, stored_on in leaves(problem, assignment)
        if stored_on != DISK or problem.scenario.runtime_model.stores_all
    )
    on_gpu = sum(
        leaf.stored_bytes
        for _, leaf, stored_on in leaves(problem, assignment)
        if stored_on.startswith("gpu:")
    )
    return problem.scenario.runtime_model.load_s(problem.scenario, read_bytes=read, device_bytes=on_gpu)
