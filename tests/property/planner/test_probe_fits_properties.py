"""Lines through copies, medians, percentiles and the search for the largest batch."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.bench.batches import RESOLUTION, next_batch
from planner.bench.rows import percentile
from planner.probe.fits import excess, fit_line, measured, over_cores, rate

POSITIVE = st.floats(min_value=1e-9, max_value=1e12)
SIZES = st.lists(st.integers(1, 2**40), min_size=2, max_size=8, unique=True)


@given(sizes=SIZES, latency_s=st.floats(0, 1e-2), bytes_per_s=st.floats(1e6, 1e13))
def test_a_line_is_found_again(sizes: list[int], latency_s: float, bytes_per_s: float) -> None:
    seconds = {size: latency_s + size / bytes_per_s for size in sizes}
    shortest, longest = min(seconds.values()), max(seconds.values())
    if longest / shortest < 1.001:
        return  # hardly two different times: rounding decides the slope
    line = fit_line(seconds)
    for size in sizes:
        assert line.latency_s + size / line.bytes_per_s == pytest.approx(seconds[size], rel=1e-3)
    assert line.error < 1e-3


@given(st.dictionaries(st.integers(1, 2**40), st.floats(1e-7, 1e3), min_size=2, max_size=8))
def test_a_line_is_never_impossible(seconds: dict[int, float]) -> None:
    try:
        line = fit_line(seconds)
    except ValueError as error:
        assert "no longer" in str(error)
        return
    assert line.latency_s >= 0
    assert 0 < line.bytes_per_s < math.inf


def test_one_size_makes_no_line() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        fit_line({1024: 1e-3})


@given(st.lists(POSITIVE, min_size=1, max_size=20))
def test_a_median_lies_among_its_samples(samples: list[float]) -> None:
    one = measured(samples, "anything")
    assert min(samples) <= one.value <= max(samples)
    assert one.spread >= 0
    assert one.num_samples == len(samples)


@given(slow=st.integers(0, 8), fast=st.integers(0, 8), rounds=st.integers(3, 9))
def test_what_is_taken_over_cores_is_between_slow_and_fast_ones(slow: int, fast: int, rounds: int) -> None:
    """And not at either, whatever something else did in one of the rounds."""
    num_cores = slow + fast
    if not num_cores:
        return
    cores = [1.8] * slow + [1.0] * fast
    one = over_cores([*cores * (rounds - 1), *[1e3] * num_cores], num_cores, "steps")
    left_out = num_cores // 10
    kept = sorted(cores)[left_out : num_cores - left_out]
    assert one.value == pytest.approx(sum(kept) / len(kept))
    assert one.num_samples == rounds * num_cores
    assert (one.average == "median") == (num_cores == 1)


@given(st.lists(POSITIVE, min_size=1, max_size=20), st.integers(1, 40))
def test_what_is_taken_over_cores_lies_among_the_samples(samples: list[float], num_cores: int) -> None:
    one = over_cores(samples, num_cores, "anything")
    slack = 1e-9 * max(samples)
    assert min(samples) - slack <= one.value <= max(samples) + slack
    assert one.num_samples == len(samples)


@pytest.mark.parametrize("samples", [[], [0.0, 0.0], [-1.0], [float("inf")], [float("nan")]])
def test_what_is_no_time_on_any_core_is_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="not a positive number"):
        over_cores(samples, 4, "a clock that went back")


@given(amount=POSITIVE, seconds=st.lists(POSITIVE, min_size=1, max_size=9))
def test_a_rate_is_an_amount_over_a_time(amount: float, seconds: list[float]) -> None:
    one = rate(amount, seconds, "anything")
    assert amount / max(seconds) * 0.999 <= one.value <= amount / min(seconds) * 1.001


@pytest.mark.parametrize("samples", [[], [1.0, 0.0], [-1.0], [float("inf")], [float("nan")]])
def test_what_is_no_time_is_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        measured(samples, "a clock that went back")


@given(
    baselines=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=9),
    each=st.floats(1e-6, 1e-2),
    count=st.integers(1, 1000),
)
def test_an_excess_is_shared_out(baselines: list[float], each: float, count: int) -> None:
    """However the machine's own pace changes from turn to turn."""
    one = excess([baseline + each * count for baseline in baselines], baselines, count, "hooks")
    assert one.value == pytest.approx(each, rel=1e-6)
    assert one.spread == pytest.approx(0, abs=1e-6)
    assert one.num_samples == len(baselines)


def test_an_excess_survives_turns_in_which_something_else_ran() -> None:
    assert excess([3.0, 3.0, 9.0, 3.0, 3.0], [1.0, 1.0, 1.0, 8.0, 1.0], 2, "hooks").value == 1.0


def test_no_excess_is_no_number() -> None:
    with pytest.raises(ValueError, match="the added time is unknown"):
        excess([1.0, 0.9, 1.1], [1.05, 1.05, 1.05], 10, "hooks")


@given(
    samples=st.lists(POSITIVE, min_size=1, max_size=30), shares=st.tuples(st.floats(0, 1), st.floats(0, 1))
)
def test_percentiles_grow(samples: list[float], shares: tuple[float, float]) -> None:
    low, high = sorted(shares)
    below, above = percentile(samples, low), percentile(samples, high)
    slack = 1e-9 * max(samples)
    assert min(samples) - slack <= below <= above + slack <= max(samples) + 2 * slack
    assert percentile(samples, 1) == max(samples)
    assert percentile(samples, 0) == min(samples)


@given(
    largest=st.integers(0, 5000),
    wanted=st.lists(st.integers(1, 6000), min_size=1, max_size=5, unique=True),
)
def test_the_largest_batch_is_found(largest: int, wanted: list[int]) -> None:
    """On a machine where every batch up to `largest` runs and none above."""
    went: dict[int, bool] = {}
    while (batch := next_batch(wanted, went, until_oom=True)) is not None:
        assert batch not in went
        went[batch] = batch <= largest
        assert len(went) < 60
    found = max((batch for batch, fine in went.items() if fine), default=0)
    assert found <= largest <= found + max(1, RESOLUTION * found)
    assert set(wanted) <= set(went)


@given(wanted=st.lists(st.integers(1, 100), min_size=1, max_size=6, unique=True))
def test_without_a_search_only_what_was_asked_for_runs(wanted: list[int]) -> None:
    went: dict[int, bool] = {}
    order = []
    while (batch := next_batch(wanted, went, until_oom=False)) is not None:
        order.append(batch)
        went[batch] = batch % 2 == 0
    assert order == wanted
