"""The best placement of one problem over the number of GPUs, and the best of a list of batch sizes.

The best batch size needs no solve for every size: the time of the best placement never decreases as the batch
grows (whatever fits and finishes in time at a larger batch also does at a smaller one). So an interval of
sizes can be skipped when its largest batch divided by its smallest time does not exceed the best rate so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from planner.cost.assignment import Assignment
from planner.cost.memory import memory
from planner.cost.problem import DISK, GPU, Problem
from planner.cost.time import objective_s, time
from planner.schema.breakdown import shortage
from planner.search.placement_program import SolvedPlacement, nearest, solve
from planner.search.stages import fill_from_end

#: Share of the best throughput that counts as equal to it, so that the smallest such batch is chosen. Where
#: computing is the bottleneck the rate hardly grows with the batch: ten times the sequences would take ten
#: times as long and much more memory, for a difference that is below the error of the estimate.
EQUAL_THROUGHPUT_SHARE: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedPlacement:
    """A placement with its predicted time and its shortage of memory.

    Attributes:
        problem: the priced scenario.
        assignment: where everything runs and is stored.
        total_s: seconds of the whole `generate()` call.
        shortage_bytes: device → bytes missing; empty when it fits.
    """

    problem: Problem
    assignment: Assignment
    total_s: float
    shortage_bytes: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether every device has enough memory."""
        return not self.shortage_bytes

    @property
    def worst_shortage(self) -> tuple[str, int]:
        """The device with the largest shortage, and that shortage in bytes; only for what does not fit."""
        return max(self.shortage_bytes.items(), key=lambda item: item[1])

    @property
    def batch_size(self) -> int:
        """Sequences in the batch, of all streams together."""
        return self.problem.scenario.num_sequences


def price_assignment(problem: Problem, assignment: Assignment) -> PricedPlacement:
    """An assignment with its time and shortage, whether or not it fits."""
    largest_shortage = shortage(memory(problem, assignment))
    return PricedPlacement(
        problem=problem,
        assignment=assignment,
        total_s=objective_s(problem, time(problem, assignment)),
        shortage_bytes=(
            {} if largest_shortage is None else {largest_shortage.device: largest_shortage.num_bytes}
        ),
    )


def best_placement(problem: Problem) -> PricedPlacement | None:
    """The fastest placement that fits, or None."""
    fitting = _all_resident(problem)
    if problem.scenario.execution.streams_from and (not fitting or problem.scenario.execution.cpu_execution):
        solved = solve(problem, _staged_elsewhere(problem))
        fitting += [c for c in [_priced(problem, solved)] if c.fits] if solved is not None else []
    return min(fitting, key=lambda c: c.total_s, default=None)


def nearest_placement(problem: Problem) -> PricedPlacement:
    """The placement with the smallest shortage of memory, for a problem of which no placement fits."""
    if not problem.scenario.execution.streams_from:
        return _all_on_main(problem)
    priced = _priced(problem, nearest(problem, _staged_elsewhere(problem)))
    disk_deficit_bytes = problem.disk_deficit_bytes
    if disk_deficit_bytes > 0 and problem.scenario.runtime_model.stores_all:
        # The only store is too small, and any shortage on the GPU follows from that.
        return replace(priced, shortage_bytes={DISK: disk_deficit_bytes})
    return priced


def _staged_elsewhere(problem: Problem) -> dict[int, str]:
    """Unit index → GPU, for the pipeline stages after the first one."""
    return fill_from_end(problem, problem.scenario.num_stages) if problem.main_kind == GPU else {}


def _all_resident(problem: Problem) -> list[PricedPlacement]:
    """Everything resident on the fewest GPUs that hold it; an empty list when none do.

    Pipeline stages run one after the other, so more GPUs only add copies between them.
    """
    on_main = _all_on_main(problem)
    if on_main.fits or problem.main_kind != GPU:
        return [on_main] if on_main.fits else []
    by_num_gpus = (_resident(problem, num_gpus) for num_gpus in range(2, problem.scenario.num_stages + 1))
    return list(islice((priced for priced in by_num_gpus if priced.fits), 1))


def _all_on_main(problem: Problem) -> PricedPlacement:
    """Everything resident on the main device: no hooks, no movement."""
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


def _priced(problem: Problem, solved: SolvedPlacement) -> PricedPlacement:
    """A solution of the integer program, priced by evaluation, which alone decides whether it fits.

    The program's shortages name every device, where evaluation names the worst one only.
    """
    priced = price_assignment(problem, solved.assignment)
    if priced.fits or not solved.shortage_bytes:
        return priced
    return replace(priced, shortage_bytes=solved.shortage_bytes)


def best_batch(
    solve_at: Callable[[int], PricedPlacement | None], ladder: Sequence[int], *, max_latency_s: float | None
) -> PricedPlacement | None:
    """The smallest batch whose throughput counts as equal to the best one.

    See `EQUAL_THROUGHPUT_SHARE`.

    Args:
        solve_at: a function from a batch size to the best placement, or None when none fits.
        ladder: batch sizes, ascending.
        max_latency_s: limit on the seconds of the whole call, or None.

    Returns:
        The best placement at that batch; None when not even the smallest batch fits and finishes in time.
    """
    batches = _BatchLadder(solve_at, ladder, max_latency_s)
    last = _last_true(batches.admissible, len(ladder))
    if last is None:
        return None
    return batches.first_with(EQUAL_THROUGHPUT_SHARE * batches.best_rate(last), last)


class _BatchLadder:
    """Ascending batch sizes with their best placements, each solved when it is first needed.

    Methods take positions in `ladder`; a rate is sequences per second.
    """

    def __init__(
        self,
        solve_at: Callable[[int], PricedPlacement | None],
        ladder: Sequence[int],
        max_latency_s: float | None,
    ) -> None:
        self.solve_at, self.ladder, self.max_latency_s = solve_at, ladder, max_latency_s
        self.solved: dict[int, PricedPlacement] = {}

    def admissible(self, position: int) -> bool:
        """Whether the batch fits and finishes in time."""
        priced = self.solve_at(self.ladder[position])
        if priced is None or (self.max_latency_s is not None and priced.total_s > self.max_latency_s):
            return False
        self.solved[position] = priced
        return True

    def at(self, position: int) -> PricedPlacement:
        """The batch's best placement, at a position up to one that is admissible."""
        if position not in self.solved and not self.admissible(position):
            raise AssertionError(f"batch {self.ladder[position]} does not fit although a larger one does")
        return self.solved[position]

    def best_rate(self, last: int) -> float:
        """The highest rate up to the position `last`."""
        best = max(_rate(self.at(0)), _rate(self.at(last)))
        pending = [(0, last)]
        while pending:
            low, high = pending.pop()
            if high - low >= 2 and self._bound(low, high) > best:
                middle = (low + high) // 2
                best = max(best, _rate(self.at(middle)))
                pending += [(low, middle), (middle, high)]
        return best

    def first_with(self, rate: float, last: int) -> PricedPlacement:
        """The smallest batch with at least this rate, which some position up to `last` must have."""
        # Batches below `low` are too slow; those between it and the last of `uppers` are examined next.
        low, uppers = 0, [last]
        while _rate(self.at(low)) < rate:
            high = uppers[-1]
            if high - low >= 2 and self._bound(low, high) >= rate:
                uppers.append((low + high) // 2)
            else:
                low = uppers.pop()
        return self.at(low)

    def _bound(self, low: int, high: int) -> float:
        """A rate that no batch between two positions exceeds: the largest of them in the lower one's time."""
        return self.ladder[high - 1] / self.ladder[low] * _rate(self.at(low))


def _rate(priced: PricedPlacement) -> float:
    return priced.batch_size / priced.total_s


def _last_true(holds: Callable[[int], bool], count: int) -> int | None:
    """The last position below `count` where a monotone predicate holds, by doubling and bisection."""
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
