"""Statistics of samples: averages with their spread, and lines through times of several sizes. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

#: Smallest number of samples for which quartiles are computed.
_LEAST_FOR_QUARTILES: Final = 4


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured number.

    Attributes:
        value: average of the samples (see `average`), in the unit of the quantity that it is stored under.
        spread: interquartile range divided by the value; with three samples or fewer, the whole range.
        num_samples: number of runs.
        method: what was run, in words.
        average: kind of average, in words: `median`, or a mean over cores.
    """

    value: float
    spread: float
    num_samples: int
    method: str
    average: str = "median"


def measured(samples: Sequence[float], method: str) -> Measurement:
    """The median of samples and their spread.

    Raises:
        ValueError: there is no sample, or a sample is not a positive, finite number.
    """
    if not samples or not all(0 < sample < float("inf") for sample in samples):
        raise ValueError(f"{method}: expected positive numbers as samples, got {len(samples)} samples")
    middle = statistics.median(samples)
    return Measurement(value=middle, spread=_range(samples) / middle, num_samples=len(samples), method=method)


def over_cores(samples: Sequence[float], num_cores: int, method: str) -> Measurement:
    """The mean over cores of each core's median.

    Cores are often either slow or fast; the median of all samples would be that of one group. With ten cores
    or more, the slowest and the fastest tenth are left out.

    Args:
        samples: taken under core rotation (see `planner.probe.core_rotation`), in the order of the runs.
        num_cores: length of the rotation's cycle: sample i was taken on core i modulo `num_cores`.
        method: what was run, in words.

    Raises:
        ValueError: there is no sample, or the mean is not a positive, finite number.
    """
    medians = sorted(statistics.median(samples[core::num_cores]) for core in range(num_cores)[: len(samples)])
    left_out = len(medians) // 10
    value = statistics.fmean(medians[left_out : len(medians) - left_out]) if medians else 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{method}: the mean of {len(samples)} samples is not a positive number")
    return Measurement(
        value=value,
        spread=_range(samples) / value,
        num_samples=len(samples),
        method=method,
        average=average_over(len(medians)),
    )


def average_over(num_cores: int) -> str:
    """The kind of average that `over_cores` computes, in words."""
    return f"mean over {num_cores} cores" if num_cores > 1 else "median"


def rate(amount: float, seconds: Sequence[float], method: str) -> Measurement:
    """The median rate of several runs.

    Args:
        amount: work of each run, such as bytes or floating-point operations.
        seconds: duration of each run.
        method: what was run, in words.

    Returns:
        The rate, in units of `amount` per second.

    Raises:
        ValueError: as `measured`.
    """
    return measured([amount / duration for duration in seconds], method)


def excess(
    samples: Sequence[float], baselines: Sequence[float], count: int, method: str, num_cores: int = 1
) -> Measurement:
    """The time that each of `count` items adds, from runs with and without them in alternation.

    Args:
        samples: seconds with the items, one for each turn.
        baselines: seconds without the items, in the same turns.
        count: number of items that the difference is divided by.
        method: what was run, in words.
        num_cores: as in `over_cores`; each turn runs on the next core.

    Raises:
        ValueError: the runs with the items took no longer than those without.
    """
    added = [sample - baseline for sample, baseline in zip(samples, baselines, strict=True)]
    if not statistics.median(added) > 0:
        raise ValueError(f"{method}: took no longer than the baseline, so the added time is unknown")
    return over_cores([seconds / count for seconds in added], num_cores, method)


def _range(samples: Sequence[float]) -> float:
    if len(samples) < _LEAST_FOR_QUARTILES:
        return max(samples) - min(samples)
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return third - first


class LineFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time of moving n bytes: `latency_s + n / bytes_per_s`.

    Attributes:
        latency_s: fitted time for zero bytes; never negative.
        bytes_per_s: rate beyond the latency.
        error: median over the sizes of |fitted / measured - 1|.
    """

    latency_s: float
    bytes_per_s: float
    error: float


def fit_line(seconds_by_size: Mapping[int, float]) -> LineFit:
    """Fit a line through (bytes, seconds) by least squares of the relative errors.

    The sizes span five orders of magnitude. With absolute errors the smallest sizes, which alone show the
    latency, would have no weight. When the fitted latency is negative, it is set to zero and the rate is
    fitted again.

    Args:
        seconds_by_size: bytes → seconds, both positive; at least two sizes.

    Raises:
        ValueError: there are fewer than two sizes, or the times do not grow with the size.
    """
    if len(seconds_by_size) < 2:
        raise ValueError(f"a line needs times of at least two sizes, not {len(seconds_by_size)}")
    points = sorted(seconds_by_size.items())
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    mean_n = sum(w * n for w, (n, _) in zip(weights, points, strict=True)) / total
    mean_t = sum(w * t for w, (_, t) in zip(weights, points, strict=True)) / total
    spread = sum(w * (n - mean_n) ** 2 for w, (n, _) in zip(weights, points, strict=True))
    slope = sum(w * (n - mean_n) * (t - mean_t) for w, (n, t) in zip(weights, points, strict=True)) / spread
    latency = mean_t - slope * mean_n
    if latency < 0:
        latency = 0.0
        slope = sum(w * n * t for w, (n, t) in zip(weights, points, strict=True)) / sum(
            w * n * n for w, (n, _) in zip(weights, points, strict=True)
        )
    if slope <= 0:
        raise ValueError("larger sizes took no longer than smaller ones")
    errors = [abs((latency + slope * n) / t - 1) for n, t in points]
    return LineFit(latency_s=latency, bytes_per_s=1 / slope, error=statistics.median(errors))
