"""The best placement of one problem over the number of GPUs, and the best batch size of a ladder.

Throughput needs no solve per batch: the time of the best placement never falls as the batch grows
(whatever fits and is done in time at a larger batch fits at a smaller one), so an interval of the
ladder can be skipped when its largest batch over its smallest time would not beat the best found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from planner.cost.assignment import Assignment
from planner.cost.memory import memory, shortage
from planner.cost.problem import DISK, GPU, Problem
from planner.cost.time import objective_s, time
from planner.search.placement_program import SolvedPlacement, nearest, solve
from planner.search.stages import fill_from_end

#: Share of the most tokens per second that a smaller batch must reach to be as good. Where arithmetic bounds
#: it, the rate hardly grows any more: ten times the sequences would take ten times as long and the whole
#: memory, for a difference that no estimate can tell.
AS_GOOD: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedPlacement:
    """A placement with its problem and what it takes.

    Attributes:
        total_s: of the whole `generate()` call.
        shortage_bytes: device → bytes missing; empty when it fits.
    """

    problem: Problem
    assignment: Assignment
    total_s: float
    shortage_bytes: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.shortage_bytes

    @property
    def worst_shortage(self) -> tuple[str, int]:
        """The device that lacks most, and how many bytes, of what does not fit."""
        return max(self.shortage_bytes.items(), key=lambda item: item[1])

    @property
    def batch_size(self) -> int:
        """Sequences in the batch, of all streams together."""
        return self.problem.scenario.num_sequences


def price_assignment(problem: Problem, assignment: Assignment) -> PricedPlacement:
    """An assignment that somebody chose, priced, whether or not it fits."""
    lack = shortage(memory(problem, assignment))
    return PricedPlacement(
        problem=problem,
        assignment=assignment,
        total_s=objective_s(problem, time(problem, assignment)),
        shortage_bytes={} if lack is None else {lack.device: lack.num_bytes},
    )


def best_placement(problem: Problem) -> PricedPlacement | None:
    """The fastest placement that fits, or None."""
    fitting = _all_resident(problem)
    if problem.scenario.execution.streams_from and (not fitting or problem.scenario.execution.cpu_execution):
        placed = solve(problem, _staged_elsewhere(problem))
        fitting += [c for c in [_candidate(problem, placed)] if c.fits] if placed is not None else []
    return min(fitting, key=lambda c: c.total_s, default=None)


def nearest_placement(problem: Problem) -> PricedPlacement:
    """When nothing fits: the placement that lacks the fewest bytes."""
    if not problem.scenario.execution.streams_from:
        return _all_on_main(problem)
    placed = _candidate(problem, nearest(problem, _staged_elsewhere(problem)))
    lacking = problem.disk_deficit_bytes
    if lacking > 0 and problem.scenario.runtime_model.stores_all:
        # Its only store is too small: whatever the GPU lacks then comes of that.
        return replace(placed, shortage_bytes={DISK: lacking})
    return placed


def _staged_elsewhere(problem: Problem) -> dict[int, str]:
    return fill_from_end(problem, problem.scenario.num_stages) if problem.main_kind == GPU else {}


def _all_resident(problem: Problem) -> list[PricedPlacement]:
    """Everything resident on the fewest GPUs that hold it: they take turns, so more only add hops."""
    alone = _all_on_main(problem)
    if alone.fits or problem.main_kind != GPU:
        return [alone] if alone.fits else []
    spread = (_resident(problem, used) for used in range(2, problem.scenario.num_stages + 1))
    return list(islice((one for one in spread if one.fits), 1))


def _all_on_main(problem: Problem) -> PricedPlacement:
    """Everything resident on one device: no hooks, no movement."""
    return price_assignment(problem, Assignment.uniform(problem, problem.scenario.execution.main))


def _resident(problem: Problem, num_gpus: int) -> PricedPlacement:
    """Everything resident on `num_gpus` GPUs, as evenly as the units allow."""
    best = _staged(problem, num_gpus, 1.0)
    if not best.fits:
        return best
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        trial = _staged(problem, num_gpus, middle)
        if trial.fits and _fullest(trial) <= _fullest(best):
            best, high = trial, middle
        else:
            low = middle
    return best


def _staged(problem: Problem, num_gpus: int, share: float) -> PricedPlacement:
    staged = fill_from_end(problem, num_gpus, share=share)
    runs_on = tuple(staged.get(index, problem.scenario.execution.main) for index in range(len(problem.units)))
    stored_on = tuple(
        (device,) * len(unit.leaves) for device, unit in zip(runs_on, problem.units, strict=True)
    )
    return price_assignment(problem, Assignment(runs_on=runs_on, stored_on=stored_on))


def _fullest(priced: PricedPlacement) -> int:
    """Bytes on the GPU that holds most."""
    return max(
        part.total
        for device, phases in memory(priced.problem, priced.assignment).items()
        if device.startswith("gpu:")
        for part in phases.values()
    )


def _candidate(problem: Problem, placed: SolvedPlacement) -> PricedPlacement:
    """Price a placement by evaluation: the search's own sums are never trusted for the verdict.

    Of what lacks, they know all devices where evaluation names the worst one.
    """
    priced = price_assignment(problem, placed.assignment)
    if priced.fits or not placed.shortage_bytes:
        return priced
    return replace(priced, shortage_bytes=placed.shortage_bytes)


def best_batch(
    solve_at: Callable[[int], PricedPlacement | None], ladder: Sequence[int], *, max_latency_s: float | None
) -> PricedPlacement | None:
    """The batch of the ladder with most tokens per second, or None when not even the smallest will do.

    Of batches that hardly differ in it the smallest: see `AS_GOOD`.

    Args:
        solve_at: the best placement at a batch size.
        ladder: batch sizes, ascending.
        max_latency_s: limit on the whole call, or None.
    """
    climb = _Climb(solve_at, ladder, max_latency_s)
    last = _last_true(climb.admissible, len(ladder))
    if last is None:
        return None
    return climb.first(last, AS_GOOD * climb.most(last))


class _Climb:
    """The ladder's batches with their best placements, each solved when it is first asked for."""

    def __init__(
        self,
        solve_at: Callable[[int], PricedPlacement | None],
        ladder: Sequence[int],
        max_latency_s: float | None,
    ) -> None:
        self.solve_at, self.ladder, self.max_latency_s = solve_at, ladder, max_latency_s
        self.solved: dict[int, PricedPlacement] = {}

    def admissible(self, position: int) -> bool:
        """Whether the batch fits, and is done in time."""
        found = self.solve_at(self.ladder[position])
        if found is None or (self.max_latency_s is not None and found.total_s > self.max_latency_s):
            return False
        self.solved[position] = found
        return True

    def at(self, position: int) -> PricedPlacement:
        """The batch's best placement, at a position below one that is admissible."""
        if position not in self.solved and not self.admissible(position):
            raise AssertionError(f"batch {self.ladder[position]} does not fit although a larger one does")
        return self.solved[position]

    def most(self, last: int) -> float:
        """The highest rate up to a position."""
        best = max(_rate(self.at(0)), _rate(self.at(last)))
        pending = [(0, last)]
        while pending:
            low, high = pending.pop()
            if high - low >= 2 and self._bound(low, high) > best:
                middle = (low + high) // 2
                best = max(best, _rate(self.at(middle)))
                pending += [(low, middle), (middle, high)]
        return best

    def first(self, last: int, enough: float) -> PricedPlacement:
        """The smallest batch with such a rate, which one up to `last` has."""
        # Batches below `low` are too slow; those between it and the last of `uppers` come next.
        low, uppers = 0, [last]
        while _rate(self.at(low)) < enough:
            high = uppers[-1]
            if high - low >= 2 and self._bound(low, high) >= enough:
                uppers.append((low + high) // 2)
            else:
                low = uppers.pop()
        return self.at(low)

    def _bound(self, low: int, high: int) -> float:
        """What no batch between two exceeds: the largest of them in the time of the lower one."""
        return self.ladder[high - 1] / self.ladder[low] * _rate(self.at(low))


def _rate(priced: PricedPlacement) -> float:
    return priced.batch_size / priced.total_s


def _last_true(holds: Callable[[int], bool], count: int) -> int | None:
    """The last position where a monotone predicate holds, found by doubling and bisection."""
    if count == 0 or not holds(0):
        return None
    low, step = 0, 1
    while low + step < count and holds(low + step):
        low += step
        step *= 2
    high = min(low + step, count)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
