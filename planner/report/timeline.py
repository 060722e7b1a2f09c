"""One decode step as it passes, and the batches beside the chosen one: what a report draws. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from planner.cost.build_problem import price
from planner.cost.problem import CPU, Problem
from planner.cost.time import hops_s, is_hooked, objective_s, time, unit_time
from planner.schema.breakdown import TimeBreakdown
from planner.search.best_placement import PricedPlacement, best_placement

#: What happens in a step, each on a line of its own.
LANES: Final = ("copy", "compute", "host", "exchange")
#: Work of modules outside every unit, which the model does around them.
OUTSIDE: Final = "outside the blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that happens without a pause.

    Attributes:
        lane: one of `LANES`; `exchange` is between GPUs.
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


@dataclass(slots=True)
class _Timeline:
    """A step as it is laid out: what has happened until now, and copies that still run ahead.

    The host waits for the copies that it has started, so they pause while it works. The cost model says the
    same: the host's own work comes on top of the longer of copies and compute.

    Attributes:
        ahead: (unit, seconds left) of weights that have not been copied yet, where copies run ahead.
    """

    ahead: list[tuple[str, float]]
    now_s: float = 0.0
    found: list[Span] = field(default_factory=list)

    def run(self, lane: str, unit: str, seconds: float) -> None:
        """Something that nothing else happens beside."""
        if seconds > 0:
            self.found.append(Span(lane=lane, unit=unit, start_s=self.now_s, seconds=seconds))
            self.now_s += seconds

    def compute(self, unit: str, seconds: float) -> None:
        """Work of the device, while copies run ahead."""
        start = self.now_s
        self.run("compute", unit, seconds)
        while self.ahead and start < self.now_s:
            start += self._copy(start, self.now_s - start)

    def fetch(self, unit: str) -> None:
        """Wait until all weights up to this unit's have been copied."""
        while any(name == unit for name, _ in self.ahead):
            self.now_s += self._copy(self.now_s, float("inf"))

    def _copy(self, start_s: float, at_most_s: float) -> float:
        unit, left = self.ahead.pop(0)
        seconds = min(left, at_most_s)
        if left > seconds:
            self.ahead.insert(0, (unit, left - seconds))
        self.found.append(Span(lane="copy", unit=unit, start_s=start_s, seconds=seconds))
        return seconds


def spans(priced: PricedPlacement) -> tuple[Span, ...]:
    """One decode step of a placement (or its prefill, where nothing is decoded), unit by unit.

    A runtime that waits for each copy does one thing after another, so that the last span ends when the
    predicted step does. One that overlaps copies ahead; it ends no earlier than predicted.
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
    timeline = _Timeline(ahead=[one for one in moved if one[1] > 0] if overlaps else [])
    _lay(timeline, OUTSIDE, problem.glue[phase].time(hooked=False))
    exchanges = _exchanges(problem, assignment.runs_on, phase)
    for name, part, exchanged in zip(names, parts, exchanges, strict=True):
        if overlaps:
            timeline.fetch(name)
        else:
            timeline.run("copy", name, part.weight_movement)
        _lay(timeline, name, part)
        timeline.run("exchange", name, exchanged)
    return tuple(timeline.found)


def _lay(timeline: _Timeline, unit: str, part: TimeBreakdown) -> None:
    """All of a unit but its weights: its cache and activations come over the same link."""
    timeline.run("copy", unit, part.kv_movement + part.communication)
    timeline.run("host", unit, part.host_overhead)
    timeline.compute(unit, part.compute)


def _exchanges(problem: Problem, runs_on: Sequence[str], phase: str) -> list[float]:
    """Seconds between GPUs after each unit: ranks' sums in every block alike, hops where the GPU changes."""
    blocks = [unit.unit.is_block for unit in problem.units]
    sharing = blocks if any(blocks) else [True] * len(blocks)
    summed = problem.communication_s[phase] / max(1, sum(sharing))
    gpus = [index for index, device in enumerate(runs_on) if device != CPU]
    stops = [*(runs_on[index] for index in gpus), problem.scenario.execution.main]
    hops = {index for index, device, then in zip(gpus, stops, stops[1:], strict=False) if device != then}
    hop = hops_s(problem, tuple(runs_on), phase) / max(1, len(hops))
    return [summed * shares + hop * (index in hops) for index, shares in enumerate(sharing)]


def batches(priced: PricedPlacement) -> tuple[BatchPoint, ...]:
    """Powers of two up to the largest that fits, and the chosen batch, run in the same way."""
    return tuple(sorted(_batches(priced), key=lambda point: point.batch_size))


def _batches(priced: PricedPlacement) -> Iterator[BatchPoint]:
    yield _point(priced)
    problem = priced.problem
    size = 1
    while True:
        found = best_placement(price(problem.scenario.with_batch(size)))
        if found is None:
            return
        if found.batch_size != priced.batch_size:
            yield _point(found)
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
