"""From samples to numbers: averages with their spread, and a line through copies of several sizes. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

#: Fewer samples have no quartiles.
_LEAST_FOR_QUARTILES: Final = 4
#: What `typical` takes.
TRIMMED: Final = "trimmed mean"
#: Of fewer none can be spared.
_LEAST_FOR_TRIMMING: Final = 5


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


def typical(samples: Sequence[float], method: str) -> Measurement:
    """The mean of samples of which some are of slow cores and some of fast ones: a median is of either.

    The highest and the lowest tenth, where something else ran, are left out; of five or more one each.

    Raises:
        ValueError: no sample, or a mean that is no positive number.
    """
    left_out = -(-len(samples) // 10) if len(samples) >= _LEAST_FOR_TRIMMING else 0
    kept = sorted(samples)[left_out : len(samples) - left_out]
    value = statistics.fmean(kept) if kept else 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{method}: {len(samples)} samples, and their mean is no positive number")
    return Measurement(
        value=value,
        spread=_range(samples) / value,
        num_samples=len(samples),
        method=method,
        average=TRIMMED,
    )


def rate(amount: float, seconds: Sequence[float], method: str) -> Measurement:
    """`amount` a second, from the times it took."""
    return measured([amount / one for one in seconds], method)


def excess(samples: Sequence[float], baselines: Sequence[float], count: int, method: str) -> Measurement:
    """What each of `count` things adds, from times with and without them, taken in turns on many cores.

    Args:
        samples: seconds with them, one for each turn.
        baselines: seconds without them, in the same turns.
        count: things that share the difference.
        method: what was run, in words.

    Raises:
        ValueError: with them it took no longer than without.
    """
    added = [one - other for one, other in zip(samples, baselines, strict=True)]
    if not statistics.median(added) > 0:
        raise ValueError(f"{method}: no longer than without, so nothing can be said")
    return typical([one / count for one in added], method)


def _range(samples: Sequence[float]) -> float:
    if len(samples) < _LEAST_FOR_QUARTILES:
        return max(samples) - min(samples)
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return third - first


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time of moving n bytes: `latency_s + n / bytes_per_s`.

    Attributes:
        latency_s: of no bytes at all; never negative.
        bytes_per_s: once it flows.
        error: median of |fitted / measured - 1| over the sizes.
    """

    latency_s: float
    bytes_per_s: float
    error: float


def fit_line(seconds_by_size: Mapping[int, float]) -> Line:
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
    return Line(latency_s=latency, bytes_per_s=1 / slope, error=statistics.median(errors))
