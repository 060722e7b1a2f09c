"""Rows as points of the scatter plot."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from planner.accuracy.compare import ComparedRow
from planner.accuracy.own import METRICS, OwnLine
from planner.accuracy.published import PublishedRow

#: Metric → panel. Published times are of a whole call for each token, which decoding rules.
PANELS: Final = {
    "prefill": "prefill, s",
    "decode": "decode step, s",
    "memory": "GPU memory, GiB",
}
_GIB: Final = 2**30


class Point(NamedTuple):
    """One number that is known twice.

    Attributes:
        panel: what was measured, with its unit; panels stand beside each other.
        origin: `own` or `published`.
        measured, predicted: in the panel's unit, above zero.
    """

    panel: str
    origin: str
    measured: float
    predicted: float


def own_points(lines: Iterable[OwnLine]) -> list[Point]:
    """One for each metric of each row that ran."""
    found = []
    for line in lines:
        for metric in METRICS:
            pair = line.pair(metric)
            if pair is not None:
                scale = _GIB if metric == "memory" else 1.0
                found.append(Point(PANELS[metric], "own", pair[0] / scale, pair[1] / scale))
    return found


def published_points(lines: Iterable[ComparedRow]) -> list[Point]:
    """Times of a token and memory of GPUs, in the panels' units."""
    found = []
    for line in lines:
        metric = {"time": "decode", "memory": "memory"}.get(line.kind)
        if metric is None or line.row.metric == "cpu_mem" or line.relative_error is None:
            continue
        measured, said = float(line.row.value) * _scale(line.row), (line.predicted or 0.0) * _scale(line.row)
        if said > 0:
            found.append(Point(PANELS[metric], "published", measured, said))
    return found


def _scale(row: PublishedRow) -> float:
    """From a published number to its panel's unit."""
    if row.metric == "time_per_token_per_sequence":
        # Milliseconds of one sequence; ZeRO's batch is of each of its streams.
        streams = int(row.n_gpus) if row.runtime.startswith("DeepSpeed ZeRO") else 1
        return row.batch_size * streams / 1e3
    # Accelerate's script prints MiB, and its table has thousands of them.
    return 1000 / 1024 if row.metric in ("gpu0_mem", "gpu1_mem") else 1.0
