"""Repeats what is measured: often enough for a median, and never for long."""

import time
from collections.abc import Callable, Sequence
from typing import Final

#: Time that one measurement may take in all, and how many runs it has at least and at most.
BUDGET_S: Final = 0.25
LEAST: Final = 3
MOST: Final = 50


def _nothing() -> None:
    """There is no device to wait for, or nothing to do."""


def repeat(
    run: Callable[[], object],
    synchronize: Callable[[], object] = _nothing,
    *,
    budget_s: float = BUDGET_S,
    least: int = LEAST,
    most: int = MOST,
    before: Callable[[], object] = _nothing,
) -> list[float]:
    """Seconds of each run, after one that is not counted.

    Args:
        run: what is timed.
        synchronize: waits for the device; called before each clock is read.
        budget_s: no further run begins after so long, once there are `least`.
        least: runs, however long they take.
        most: runs.
        before: done before each run, and not timed.
    """
    before()
    run()
    synchronize()
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < most and (len(found) < least or time.perf_counter() - begun < budget_s):
        before()
        found.append(once(run, synchronize))
    return found


def alternate(
    runs: Sequence[Callable[[], object]],
    synchronize: Callable[[], object] = _nothing,
    *,
    budget_s: float = BUDGET_S,
    least: int = LEAST,
    most: int = MOST,
    before: Callable[[], object] = _nothing,
) -> list[list[float]]:
    """Seconds of runs that take turns, for each run a list; their differences are taken turn by turn.

    What slows the machine for a while slows neighbours alike, and so hardly shows in a turn's difference.
    One turn before is not counted.

    Args:
        runs: what is timed, in this order in every turn.
        synchronize: waits for the device; called before each clock is read.
        budget_s: no further turn begins after so long, once there are `least`.
        least: turns, however long they take.
        most: turns.
        before: done before each turn, and not timed.
    """
    turns: list[list[float]] = []

    def turn() -> None:
        turns.append([once(run, synchronize) for run in runs])

    repeat(turn, budget_s=budget_s, least=least, most=most, before=before)
    return [list(samples) for samples in zip(*turns[1:], strict=True)]


def once(run: Callable[[], object], synchronize: Callable[[], object] = _nothing) -> float:
    """Seconds of one run, the device waited for."""
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start
