"""Points of the scatter plot of predicted against measured values."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from planner.accuracy.compare import ComparedRow
from planner.accuracy.own import METRICS, OwnLine
from planner.accuracy.published import PublishedRow

#: Metric → panel. Published times per token of a whole call are shown as decode steps, which dominate them.
PANELS: Final = {
    "prefill": "prefill, s",
    "decode": "decode step, s",
    "memory": "GPU memory, GiB",
}
_GIB: Final = 2**30


class Point(NamedTuple):
    """One value that is both measured and predicted.

    Attributes:
        panel: title of the panel: the metric with its unit.
        origin: `own` (a benchmark row) or `published`.
        measured, predicted: the values in the panel's unit; positive.
    """

    panel: str
    origin: str
    measured: float
    predicted: float


def own_points(lines: Iterable[OwnLine]) -> list[Point]:
    """One point for each metric of each benchmark row that ran."""
    points = []
    for line in lines:
        for metric in METRICS:
            pair = line.pair(metric)
            if pair is not None:
                scale = _GIB if metric == "memory" else 1.0
                points.append(Point(PANELS[metric], "own", pair[0] / scale, pair[1] / scale))
    return points


def published_points(lines: Iterable[ComparedRow]) -> list[Point]:
    """One point for each published time per token and GPU memory, in the panels' units."""
    points = []
    for line in lines:
        metric = {"time": "decode", "memory": "memory"}.get(line.kind)
        if metric is None or line.row.metric == "cpu_mem" or line.relative_error is None:
            continue
        scale = _scale(line.row)
        measured, predicted = float(line.row.value) * scale, (line.predicted or 0.0) * scale
        if predicted > 0:
            points.append(Point(PANELS[metric], "published", measured, predicted))
    return points


def _scale(row: PublishedRow) -> float:
    """Factor from a published number to the panel's unit."""
    if row.metric == "time_per_token_per_sequence":
        # Milliseconds per sequence; the batch size of ZeRO is per stream.
        streams = int(row.n_gpus) if row.runtime.startswith("DeepSpeed ZeRO") else 1
        return row.batch_size * streams / 1e3
    # Accelerate's script prints MiB; the published table divides them by 1000.
    return 1000 / 1024 if row.metric in ("gpu0_mem", "gpu1_mem") else 1.0
