"""From samples to numbers: averages with their spread, and a line through copies of several sizes. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

#: Fewer samples have no quartiles.
_LEAST_FOR_QUARTILES: Final = 4


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number, measured.

    Attributes:
        value: the median, or what `average` says, in the unit that its name says.
        spread: interquartile range over the value; of three samples or fewer the whole range.
        num_samples: runs behind it.
        method: what was run, in words.
        average: how the value was taken from the runs, in words.
    """

    value: float
    spread: float
    num_samples: int
    method: str
    average: str = "median"


def measured(samples: Sequence[float], method: str) -> Measurement:
    """The median of samples and their spread.

    Raises:
        ValueError: no sample, or one that is no positive number.
    """
    if not samples or not all(0 < sample < float("inf") for sample in samples):
        raise ValueError(f"{method}: {len(samples)} samples, and not all of them positive numbers")
    middle = statistics.median(samples)
    return Measurement(value=middle, spread=_range(samples) / middle, num_samples=len(samples), method=method)


def over_cores(samples: Sequence[float], num_cores: int, method: str) -> Measurement:
    """The mean over cores of each one's median: a median of all would be of the slow ones or of the fast.

    Of ten cores or more the slowest and the fastest tenth are left out.

    Args:
        samples: taken on one core after the other, in turns (see `planner.probe.core_rotation`).
        num_cores: after so many the first core comes again.
        method: what was run, in words.

    Raises:
        ValueError: no sample, or a mean that is no positive number.
    """
    medians = sorted(statistics.median(samples[core::num_cores]) for core in range(num_cores)[: len(samples)])
    left_out = len(medians) // 10
    value = statistics.fmean(medians[left_out : len(medians) - left_out]) if medians else 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{method}: {len(samples)} samples, and their mean is no positive number")
    return Measurement(
        value=value,
        spread=_range(samples) / value,
        num_samples=len(samples),
        method=method,
        average=average_over(len(medians)),
    )


def average_over(num_cores: int) -> str:
    """What `over_cores` takes, in words."""
    return f"mean over {num_cores} cores" if num_cores > 1 else "median"


def rate(amount: float, seconds: Sequence[float], method: str) -> Measurement:
    """`amount` a second, from the times it took."""
    return measured([amount / one for one in seconds], method)


def excess(
    samples: Sequence[float], baselines: Sequence[float], count: int, method: str, num_cores: int = 1
) -> Measurement:
    """What each of `count` things adds, from times with and without them that were taken in turns.

    Args:
        samples: seconds with them, one for each turn.
        baselines: seconds without them, in the same turns.
        count: things that share the difference.
        method: what was run, in words.
        num_cores: of `over_cores`; turns walk over them.

    Raises:
        ValueError: with them it took no longer than without.
    """
    added = [one - other for one, other in zip(samples, baselines, strict=True)]
    if not statistics.median(added) > 0:
        raise ValueError(f"{method}: no longer than without, so nothing can be said")
    return over_cores([one / count for one in added], num_cores, method)


def _range(samples: Sequence[float]) -> float:
    if len(samples) < _LEAST_FOR_QUARTILES:
        return max(samples) - min(samples)
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return third - first


class LineFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time of moving n bytes: `latency_s + n / bytes_per_s`.

    Attributes:
        latency_s: of no bytes at all; never negative.
        bytes_per_s: once it flows.
        error: median of |fitted / measured - 1| over the sizes.
    """

    latency_s: float
    bytes_per_s: float
    error: float


def fit_line(seconds_by_size: Mapping[int, float]) -> LineFit:
    """The line through (bytes, seconds) with the smallest relative errors.

    Errors are relative because sizes span five decades: by absolute ones the smallest, which alone show the
    latency, would count for nothing. A line that would start below zero starts at zero.

    Args:
        seconds_by_size: bytes → seconds, both positive; at least two sizes.

    Raises:
        ValueError: fewer than two sizes, or times that do not grow with the size.
    """
    if len(seconds_by_size) < 2:
        raise ValueError(f"a line needs copies of two sizes, not {len(seconds_by_size)}")
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
        raise ValueError("larger copies took no longer than smaller ones")
    errors = [abs((latency + slope * n) / t - 1) for n, t in points]
    return LineFit(latency_s=latency, bytes_per_s=1 / slope, error=statistics.median(errors))
