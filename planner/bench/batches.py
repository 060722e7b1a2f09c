"""Chooses the next batch size from the outcomes of the previous ones. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

#: Relative accuracy of the search for the largest batch size that runs.
RESOLUTION: Final = 0.04
_LARGEST: Final = 2**20


def next_batch(wanted: Sequence[int], outcomes: Mapping[int, bool], *, until_oom: bool) -> int | None:
    """The next batch size to run, or None when all are done.

    The requested batch sizes come first, in their order. With `until_oom`, the largest batch size that ran is
    then doubled until one runs out of memory, and the largest that runs is found by bisection.

    Args:
        wanted: requested batch sizes.
        outcomes: batch size → True if it ran, False if it ran out of memory.
        until_oom: whether to search for the largest batch size that runs.
    """
    for batch in wanted:
        if batch not in outcomes:
            return batch
    ran = [batch for batch, has_run in outcomes.items() if has_run]
    if not until_oom or not outcomes:
        return None
    low = max(ran, default=0)
    failed = [batch for batch, has_run in outcomes.items() if not has_run and batch > low]
    if not failed:
        return 2 * low if 0 < low < _LARGEST else None
    high = min(failed)
    if high - low <= max(1, int(RESOLUTION * low)):
        return None
    return (low + high) // 2
