"""Timing of repeated runs: enough runs for a median, within a time budget."""

import time
from collections.abc import Callable, Sequence
from typing import Final

#: Time budget of one measurement, and its smallest and largest number of runs.
BUDGET_S: Final = 0.25
LEAST: Final = 3
MOST: Final = 50


def _nothing() -> None:
    """Do nothing; the default where there is no device to wait for and nothing to prepare."""


def repeat(
    run: Callable[[], object],
    synchronize: Callable[[], object] = _nothing,
    *,
    budget_s: float = BUDGET_S,
    least: int = LEAST,
    most: int = MOST,
    before: Callable[[], object] = _nothing,
) -> list[float]:
    """Time a function repeatedly, after one warm-up run.

    Args:
        run: function to time.
        synchronize: waits until the device is idle; called after each run, before the clock is read.
        budget_s: no further run starts after this time, once there are `least` runs.
        least: smallest number of timed runs, however long they take.
        most: largest number of timed runs.
        before: called before each run, outside the timed interval.

    Returns:
        Seconds of each timed run.
    """
    before()
    run()
    synchronize()
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < most and (len(samples) < least or time.perf_counter() - begun < budget_s):
        before()
        samples.append(once(run, synchronize))
    return samples


def alternate(
    runs: Sequence[Callable[[], object]],
    synchronize: Callable[[], object] = _nothing,
    *,
    budget_s: float = BUDGET_S,
    least: int = LEAST,
    most: int = MOST,
    before: Callable[[], object] = _nothing,
) -> list[list[float]]:
    """Time several functions in alternation, after one warm-up turn; a turn runs each of them once.

    A temporary slowdown of the machine affects all runs of a turn alike, so it largely cancels in the
    difference of two runs of the same turn.

    Args:
        runs: functions to time, in this order in every turn.
        synchronize: waits until the device is idle; called after each run, before the clock is read.
        budget_s: no further turn starts after this time, once there are `least` turns.
        least: smallest number of timed turns, however long they take.
        most: largest number of timed turns.
        before: called before each turn, outside the timed intervals.

    Returns:
        For each function, the seconds of its runs in the order of the turns.
    """
    turns: list[list[float]] = []

    def turn() -> None:
        turns.append([once(run, synchronize) for run in runs])

    repeat(turn, budget_s=budget_s, least=least, most=most, before=before)
    return [list(samples) for samples in zip(*turns[1:], strict=True)]


def once(run: Callable[[], object], synchronize: Callable[[], object] = _nothing) -> float:
    """Seconds of one run, including the wait until the device is idle."""
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start
