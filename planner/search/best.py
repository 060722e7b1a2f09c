"""The best placement of one problem over the number of GPUs, and the best batch size of a ladder.

Throughput needs no solve per batch: the time of the best placement never falls as the batch grows
(whatever fits and is done in time at a larger batch fits at a smaller one), so an interval of the
ladder can be skipped when its largest batch over its smallest time would not beat the best found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from planner.evaluate import Assignment, memory, objective_s, shortage, time
from planner.problem import DISK, GPU, Problem
from planner.search.placement import Placed, nearest, solve
from planner.search.stages import fill_from_end


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
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
        return self.problem.num_sequences


def priced(problem: Problem, assignment: Assignment) -> Candidate:
    """An assignment that somebody chose, priced, whether or not it fits."""
    lack = shortage(memory(problem, assignment))
    return Candidate(
        problem=problem,
        assignment=assignment,
        total_s=objective_s(problem, time(problem, assignment)),
        shortage_bytes={} if lack is None else {lack.device: lack.num_bytes},
    )


def best_placement(problem: Problem) -> Candidate | None:
    """The fastest placement that fits, or None."""
    fitting = _all_resident(problem)
    if problem.settings.streams_from and (not fitting or problem.settings.cpu_execution):
        placed = solve(problem, _staged_elsewhere(problem))
        fitting += [c for c in [_candidate(problem, placed)] if c.fits] if placed is not None else []
    return min(fitting, key=lambda c: c.total_s, default=None)


def nearest_placement(problem: Problem) -> Candidate:
    """When nothing fits: the placement that lacks the fewest bytes."""
    if not problem.settings.streams_from:
        return _all_on_main(problem)
    placed = _candidate(problem, nearest(problem, _staged_elsewhere(problem)))
    lacking = problem.disk_deficit_bytes
    if lacking > 0 and problem.law.stores_all:
        # Its only store is too small: whatever the GPU lacks then comes of that.
        return replace(placed, shortage_bytes={DISK: lacking})
    return placed


def _staged_elsewhere(problem: Problem) -> dict[int, str]:
    return fill_from_end(problem, problem.num_stages) if problem.main_kind == GPU else {}


def _all_resident(problem: Problem) -> list[Candidate]:
    """Everything resident on the fewest GPUs that hold it: they take turns, so more only add hops."""
    alone = _all_on_main(problem)
    if alone.fits or problem.main_kind != GPU:
        return [alone] if alone.fits else []
    spread = (_resident(problem, used) for used in range(2, problem.num_stages + 1))
    return list(islice((one for one in spread if one.fits), 1))


def _all_on_main(problem: Problem) -> Candidate:
    """Everything resident on one device: no hooks, no movement."""
    main = problem.settings.main
    assignment = Assignment(
        executes=(main,) * len(problem.units),
        lives=tuple((main,) * len(unit.leaves) for unit in problem.units),
    )
    return priced(problem, assignment)


def _resident(problem: Problem, num_gpus: int) -> Candidate:
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


def _staged(problem: Problem, num_gpus: int, share: float) -> Candidate:
    staged = fill_from_end(problem, num_gpus, share=share)
    executes = tuple(staged.get(index, problem.settings.main) for index in range(len(problem.units)))
    lives = tuple((device,) * len(unit.leaves) for device, unit in zip(executes, problem.units, strict=True))
    return priced(problem, Assignment(executes=executes, lives=lives))


def _fullest(candidate: Candidate) -> int:
    """Bytes on the GPU that holds most."""
    return max(
        part.total
        for device, phases in memory(candidate.problem, candidate.assignment).items()
        if device.startswith("gpu:")
        for part in phases.values()
    )


def _candidate(problem: Problem, placed: Placed) -> Candidate:
    """Price a placement by evaluation: the search's own sums are never trusted for the verdict.

    Of what lacks, they know all devices where evaluation names the worst one.
    """
    candidate = priced(problem, placed.assignment)
    if candidate.fits or not placed.shortage_bytes:
        return candidate
    return replace(candidate, shortage_bytes=placed.shortage_bytes)


def best_batch(
    solve_at: Callable[[int], Candidate | None], ladder: Sequence[int], *, max_latency_s: float | None
) -> Candidate | None:
    """The batch of the ladder with most tokens per second, or None when not even the smallest will do.

    Args:
        solve_at: the best placement at a batch size.
        ladder: batch sizes, ascending.
        max_latency_s: limit on the whole call, or None.
    """
    solved: dict[int, Candidate] = {}

    def at(position: int) -> Candidate:
        return solved[position]

    def admissible(position: int) -> bool:
        found = solve_at(ladder[position])
        if found is None or (max_latency_s is not None and found.total_s > max_latency_s):
            return False
        solved[position] = found
        return True

    last = _last_true(admissible, len(ladder))
    if last is None:
        return None
    best = max((at(0), at(last)), key=_rate)
    pending = [(0, last)]
    while pending:
        low, high = pending.pop()
        if high - low < 2 or _scaled(at(low), ladder[high - 1] / ladder[low]) <= _rate(best):
            continue
        middle = (low + high) // 2
        if middle not in solved and not admissible(middle):
            raise AssertionError(f"batch {ladder[middle]} does not fit although {ladder[high]} does")
        best = max((best, at(middle)), key=_rate)
        pending += [(low, middle), (middle, high)]
    return best


def _scaled(candidate: Candidate, factor: float) -> float:
    """The rate of so many times the sequences in the same time."""
    return factor * _rate(candidate)


def _rate(candidate: Candidate) -> float:
    return candidate.batch_size / candidate.total_s


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
