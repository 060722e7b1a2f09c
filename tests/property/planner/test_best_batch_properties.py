"""The best batch of a ladder against trying all of it."""

from itertools import accumulate
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from planner.schema.workload import BATCH_LADDER
from planner.search.best_placement import EQUAL_THROUGHPUT_SHARE, best_batch


class SolvedPlacement(NamedTuple):
    """As much of a candidate as a batch is chosen by."""

    batch_size: int
    total_s: float


def chosen(times: dict[int, float], max_latency_s: float | None) -> Any:
    """Batches that are not among `times` do not fit."""

    def solve_at(batch: int) -> Any:
        return SolvedPlacement(batch, times[batch]) if batch in times else None

    return best_batch(solve_at, BATCH_LADDER, max_latency_s=max_latency_s)


#: Seconds that each further batch of the ladder adds: nothing, little, or more than its share.
STEPS = st.lists(st.sampled_from([0.0, 0.01, 0.1, 1.0, 30.0]), min_size=1, max_size=len(BATCH_LADDER))


@given(steps=STEPS, limit=st.one_of(st.none(), st.floats(0.5, 100.0)))
def test_it_is_the_smallest_that_is_as_good_as_the_best(steps: list[float], limit: float | None) -> None:
    times = dict(zip(BATCH_LADDER, accumulate(steps, initial=1.0), strict=False))
    allowed = {batch: s for batch, s in times.items() if limit is None or s <= limit}
    found = chosen(times, limit)
    if not allowed:
        assert found is None
        return
    most = max(batch / s for batch, s in allowed.items())
    assert found.batch_size == next(b for b, s in allowed.items() if b / s >= EQUAL_THROUGHPUT_SHARE * most)


def test_where_arithmetic_bounds_the_rate_the_batch_stays_small() -> None:
    # A second for the weights, then a tenth for each sequence: past ten they take as long as they are many.
    times = {batch: max(1.0, 0.1 * batch) for batch in BATCH_LADDER}
    assert chosen(times, None).batch_size == 10


def test_a_rate_that_grows_to_the_end_takes_the_largest() -> None:
    times = {batch: 100.0 + 0.01 * batch for batch in BATCH_LADDER if batch <= 64}
    assert chosen(times, None).batch_size == 64
