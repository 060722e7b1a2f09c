"""Repeats what is measured: often enough for a median, and never for long."""

import time
from collections.abc import Callable
from typing import Final

#: Time that one measurement may take in all, and how many runs it has at least and at most.
BUDGET_S: Final = 0.25
LEAST: Final = 3
MOST: Final = 50


def _nothing() -> None:
    """There is no device to wait for."""


def repeat(
    run: Callable[[], object],
    synchronize: Callable[[], object] = _nothing,
    *,
    budget_s: float = BUDGET_S,
    least: int = LEAST,
    most: int = MOST,
) -> list[float]:
    """Seconds of each run, after one that is not counted.

    Args:
        run: what is timed.
        synchronize: waits for the device; called before each clock is read.
        budget_s: no further run begins after so long, once there are `least`.
        least: runs, however long they take.
        most: runs.
    """
    run()
    synchronize()
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < most and (len(found) < least or time.perf_counter() - begun < budget_s):
        start = time.perf_counter()
        run()
        synchronize()
        found.append(time.perf_counter() - start)
    return found
