"""Memory and time of one assignment, and what follows from them."""

from planner.breakdown import PHASES
from planner.plan import Prediction
from planner.problem import DISK, Problem
from planner.sources import weakest

from .assignment import Assignment, leaves
from .memory import memory
from .time import objective_s, time


def predict(problem: Problem, assignment: Assignment) -> Prediction:
    """Memory and time of one assignment, with everything that follows from them."""
    times = time(problem, assignment)
    total_s = objective_s(problem, times)
    workload = problem.workload
    tokens = problem.num_sequences * (
        workload.new_tokens if problem.graph.generates else workload.prompt_tokens
    )
    tokens_per_s = tokens / total_s if total_s > 0 else 0.0
    price = problem.profile.usd_per_hour
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
    """Reading what must be read once, and copying to the GPUs what lives there."""
    read = problem.buffers.unpacked + sum(
        leaf.stored_bytes
        for _, leaf, lives in leaves(problem, assignment)
        if lives != DISK or problem.law.stores_all
    )
    on_gpu = sum(
        leaf.stored_bytes for _, leaf, lives in leaves(problem, assignment) if lives.startswith("gpu:")
    )
    return problem.law.load_s(
        read_bytes=read, device_bytes=on_gpu, settings=problem.settings, profile=problem.profile
    )
