"""Which batch comes next, given how the ones before it went. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

#: The largest batch that runs is found to within this share of it.
RESOLUTION: Final = 0.04
_LARGEST: Final = 2**20


def next_batch(wanted: Sequence[int], went: Mapping[int, bool], *, until_oom: bool) -> int | None:
    """The next batch to run, or None when there is nothing left to learn.

    First those that were asked for, in their order. Then, if asked to, twice the largest that ran until one
    does not, and halfway between until the largest that runs is known closely.

    Args:
        wanted: asked for.
        went: batch → whether it ran; False for out of memory.
        until_oom: whether to look for the largest.
    """
    for batch in wanted:
        if batch not in went:
            return batch
    ran = [batch for batch, fine in went.items() if fine]
    if not until_oom or not went:
        return None
    low = max(ran, default=0)
    failed = [batch for batch, fine in went.items() if not fine and batch > low]
    if not failed:
        return 2 * low if 0 < low < _LARGEST else None
    high = min(failed)
    if high - low <= max(1, int(RESOLUTION * low)):
        return None
    return (low + high) // 2
