"""The timeline of one decode step, and predictions for other batch sizes: the data of a report. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from planner.cost.build_problem import price
from planner.cost.problem import CPU, Problem
from planner.cost.time import hops_s, is_hooked, objective_s, time, unit_time
from planner.schema.breakdown import TimeBreakdown
from planner.search.best_placement import PricedPlacement, best_placement

#: Kinds of work in a step; each has a line of the timeline.
LANES: Final = ("copy", "compute", "host", "exchange")
#: Name for the work of modules outside all units.
OUTSIDE: Final = "outside the blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An interval of work in a step.

    Attributes:
        lane: one of `LANES`; `exchange` is communication between GPUs.
        unit: block or module that it belongs to.
        start_s: start, relative to the start of the step.
        seconds: duration.
    """

    lane: str
    unit: str
    start_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPoint:
    """Prediction for one batch size with its own best placement.

    Attributes:
        batch_size: sequences of all streams together.
        step_s: time of one decode step, or of one forward for a model that does not generate.
        tokens_per_s: throughput of the whole call.
    """

    batch_size: int
    step_s: float
    tokens_per_s: float


@dataclass(slots=True)
class _Timeline:
    """The timeline of a step under construction.

    Prefetched copies run in parallel with computation, but not with work of the host. This matches the cost
    model, in which the host's work is added to the longer of copies and computation.

    Attributes:
        ahead: (unit, remaining seconds) of prefetched weights that have not been copied yet.
        now_s: current end of the timeline.
        spans: intervals so far.
    """

    ahead: list[tuple[str, float]]
    now_s: float = 0.0
    spans: list[Span] = field(default_factory=list)

    def run(self, lane: str, unit: str, seconds: float) -> None:
        """Append work with nothing in parallel.

        Args:
            lane: one of `LANES`.
            unit: block or module that it belongs to.
            seconds: duration; nothing is appended for 0.
        """
        if seconds > 0:
            self.spans.append(Span(lane=lane, unit=unit, start_s=self.now_s, seconds=seconds))
            self.now_s += seconds

    def compute(self, unit: str, seconds: float) -> None:
        """Append computation, with prefetched copies in parallel."""
        start = self.now_s
        self.run("compute", unit, seconds)
        while self.ahead and start < self.now_s:
            start += self._copy(start, self.now_s - start)

    def fetch(self, unit: str) -> None:
        """Append the wait until the weights of all units up to this one have been copied."""
        while any(name == unit for name, _ in self.ahead):
            self.now_s += self._copy(self.now_s, float("inf"))

    def _copy(self, start_s: float, at_most_s: float) -> float:
        unit, left = self.ahead.pop(0)
        seconds = min(left, at_most_s)
        if left > seconds:
            self.ahead.insert(0, (unit, left - seconds))
        self.spans.append(Span(lane="copy", unit=unit, start_s=start_s, seconds=seconds))
        return seconds


def spans(priced: PricedPlacement) -> tuple[Span, ...]:
    """The timeline of one decode step of a placement, or of its prefill if nothing is decoded.

    For a runtime that waits for each copy, all work is sequential, and the last span ends at the predicted
    time of the step. For a runtime that prefetches, it ends at the predicted time or later.
    """
    problem, assignment = priced.problem, priced.assignment
    phase = "decode" if problem.num_decode_steps else "prefill"
    hooked = is_hooked(problem.scenario.runtime_model, assignment)
    parts = [
        unit_time(problem, unit, runs_on, stored_on, phase, hooked=hooked)
        for unit, runs_on, stored_on in zip(
            problem.units, assignment.runs_on, assignment.stored_on, strict=True
        )
    ]
    names = [unit.unit.name for unit in problem.units]
    moved = list(zip(names, (part.weight_movement for part in parts), strict=True))
    overlaps = problem.scenario.execution.overlaps
    ahead = [(name, seconds) for name, seconds in moved if seconds > 0] if overlaps else []
    timeline = _Timeline(ahead=ahead)
    _lay(timeline, OUTSIDE, problem.glue[phase].time(hooked=False))
    exchanges = _exchanges(problem, assignment.runs_on, phase)
    for name, part, exchanged in zip(names, parts, exchanges, strict=True):
        if overlaps:
            timeline.fetch(name)
        else:
            timeline.run("copy", name, part.weight_movement)
        _lay(timeline, name, part)
        timeline.run("exchange", name, exchanged)
    return tuple(timeline.spans)


def _lay(timeline: _Timeline, unit: str, part: TimeBreakdown) -> None:
    """Append the work of a unit except the copies of its weights."""
    timeline.run("copy", unit, part.kv_movement + part.communication)
    timeline.run("host", unit, part.host_overhead)
    timeline.compute(unit, part.compute)


def _exchanges(problem: Problem, runs_on: Sequence[str], phase: str) -> list[float]:
    """Seconds of communication between GPUs after each unit.

    All-reduces of the ranks are distributed evenly over the blocks; copies of activations follow the units
    after which the GPU changes.
    """
    blocks = [unit.unit.is_block for unit in problem.units]
    sharing = blocks if any(blocks) else [True] * len(blocks)
    summed = problem.communication_s[phase] / max(1, sum(sharing))
    gpus = [index for index, device in enumerate(runs_on) if device != CPU]
    stops = [*(runs_on[index] for index in gpus), problem.scenario.execution.main]
    hops = {index for index, device, then in zip(gpus, stops, stops[1:], strict=False) if device != then}
    hop = hops_s(problem, tuple(runs_on), phase) / max(1, len(hops))
    return [summed * shares + hop * (index in hops) for index, shares in enumerate(sharing)]


def batches(priced: PricedPlacement) -> tuple[BatchPoint, ...]:
    """Predictions for powers of two up to the largest that fits, and for the chosen batch size."""
    return tuple(sorted(_batches(priced), key=lambda point: point.batch_size))


def _batches(priced: PricedPlacement) -> Iterator[BatchPoint]:
    yield _point(priced)
    problem = priced.problem
    size = 1
    while True:
        best = best_placement(price(problem.scenario.with_batch(size)))
        if best is None:
            return
        if best.batch_size != priced.batch_size:
            yield _point(best)
        size *= 2


def _point(priced: PricedPlacement) -> BatchPoint:
    problem: Problem = priced.problem
    times = time(problem, priced.assignment)
    phase = "decode" if problem.num_decode_steps else "prefill"
    tokens = (
        problem.scenario.workload.new_tokens
        if problem.scenario.graph.generates
        else problem.scenario.workload.prompt_tokens
    )
    return BatchPoint(
        batch_size=priced.batch_size,
        step_s=times[phase].total,
        tokens_per_s=priced.batch_size * tokens / objective_s(problem, times),
    )
