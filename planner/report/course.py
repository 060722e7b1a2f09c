"""One decode step as it passes, and the batches beside the chosen one: what a report draws. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from planner.evaluate import is_hooked, objective_s, time, unit_time
from planner.graph.network import placement_units
from planner.pricing import price
from planner.problem import Problem
from planner.search.best import Candidate, best_placement
from planner.units import chain_of

#: What happens in a step, each on a line of its own.
LANES: Final = ("copy", "compute", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that happens without a pause.

    Attributes:
        lane: one of `LANES`.
        unit: the block or module that it belongs to.
        start_s, seconds: from the step's beginning.
    """

    lane: str
    unit: str
    start_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPoint:
    """What one batch size would do, at its own best placement.

    Attributes:
        batch_size: of all streams together.
        step_s: one decode step (one forward, for a model that does not generate).
        tokens_per_s: of the whole call.
    """

    batch_size: int
    step_s: float
    tokens_per_s: float


def spans(candidate: Candidate) -> tuple[Span, ...]:
    """One decode step of a placement (or its prefill, where nothing is decoded), unit by unit.

    A runtime that waits for each copy does one thing after another; one that overlaps copies ahead.
    """
    problem, assignment = candidate.problem, candidate.assignment
    phase = "decode" if problem.num_decode_steps else "prefill"
    hooked = is_hooked(problem.law, assignment)
    found: list[Span] = []
    now = copied = 0.0
    for unit, executes, lives in zip(problem.units, assignment.executes, assignment.lives, strict=True):
        part = unit_time(problem, unit, executes, lives, phase, hooked=hooked)
        copy_s = part.weight_movement + part.kv_movement + part.communication
        start = copied if problem.settings.overlaps else now
        copied = start + copy_s
        now = max(now, copied)
        lanes = (("copy", start, copy_s), ("host", now, part.host_overhead))
        found += [_span(lane, unit.unit.name, at, seconds) for lane, at, seconds in lanes if seconds > 0]
        now += part.host_overhead
        if part.compute > 0:
            found.append(_span("compute", unit.unit.name, now, part.compute))
        now += part.compute
    return tuple(found)


def _span(lane: str, unit: str, start_s: float, seconds: float) -> Span:
    return Span(lane=lane, unit=unit, start_s=start_s, seconds=seconds)


def batches(candidate: Candidate) -> tuple[BatchPoint, ...]:
    """Powers of two up to the largest that fits, and the chosen batch, run in the same way."""
    return tuple(sorted(_batches(candidate), key=lambda point: point.batch_size))


def _batches(candidate: Candidate) -> Iterator[BatchPoint]:
    yield _point(candidate)
    problem = candidate.problem
    chain = chain_of(problem.graph, placement_units(problem.graph))
    size = 1
    while True:
        workload = problem.workload.with_batch(size)
        other = price(problem.graph, chain, problem.profile, workload, problem.settings, problem.law)
        found = best_placement(other)
        if found is None:
            return
        if found.batch_size != candidate.batch_size:
            yield _point(found)
        size *= 2


def _point(candidate: Candidate) -> BatchPoint:
    problem: Problem = candidate.problem
    times = time(problem, candidate.assignment)
    phase = "decode" if problem.num_decode_steps else "prefill"
    tokens = problem.workload.new_tokens if problem.graph.generates else problem.workload.prompt_tokens
    return BatchPoint(
        batch_size=candidate.batch_size,
        step_s=times[phase].total,
        tokens_per_s=candidate.batch_size * tokens / objective_s(problem, times),
    )
