"""The Markdown report on benchmark rows, a section of the report on published rows."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import msgspec

from planner.accuracy.own import METRICS, LargestBatch, OwnLine
from planner.accuracy.tables import table
from planner.sizes import format_bytes, format_seconds

_INTRODUCTION: Final = """\
Rows that `planner bench` wrote, predicted again by the current cost model with the profile of their plan.
Each cell shows predicted / measured. A step is the mean decode step. Memory is the largest amount that the
allocator of any GPU reserved, without the CUDA context.
"""
_COLUMNS: Final = (
    *("configuration", "model", "memory", "batch", "status", "prefill", "error"),
    *("step", "error", "reserved", "error", "remark"),
)


class OwnMedian(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Errors of benchmark rows in one metric.

    Attributes:
        file: file of the rows; empty for the rows of all files.
        metric: one of `METRICS`.
        num_rows: number of rows with a measured and a predicted value.
        median_error: median absolute relative error.
        bias: median of the signed relative errors.
        worst: the relative error with the largest absolute value, with its sign.
    """

    file: str
    metric: str
    num_rows: int
    median_error: float
    bias: float
    worst: float


def own_medians(lines: Sequence[OwnLine]) -> tuple[OwnMedian, ...]:
    """Medians of all rows for each metric, followed by those of each file if there are several files."""
    files = dict.fromkeys(line.file for line in lines)
    by_file = [_medians([line for line in lines if line.file == file], file) for file in files]
    return (*_medians(lines), *chain.from_iterable(by_file if len(files) > 1 else []))


def _medians(lines: Sequence[OwnLine], file: str = "") -> Iterator[OwnMedian]:
    for metric in METRICS:
        errors = [error for line in lines if (error := line.error(metric)) is not None]
        if errors:
            yield OwnMedian(
                file=file,
                metric=metric,
                num_rows=len(errors),
                median_error=statistics.median(map(abs, errors)),
                bias=statistics.median(errors),
                worst=max(errors, key=abs),
            )


def fits_right(lines: Iterable[OwnLine]) -> tuple[int, int]:
    """Number of rows for which it is predicted correctly whether they fit, and number of rows judged."""
    judged = [line.fit_is_right for line in lines if line.fit_is_right is not None]
    return sum(judged), len(judged)


def own_markdown(lines: Sequence[OwnLine], largest: Sequence[LargestBatch]) -> str:
    """The section on benchmark rows: medians, largest batch sizes and every row."""
    right, known = fits_right(lines)
    parts = [
        "## Benchmark rows\n",
        _INTRODUCTION,
        table(
            ("rows of", "metric", "rows", "median error", "bias", "worst"),
            map(own_median_cells, own_medians(lines)),
        ),
        f"Fit or out of memory is predicted correctly in {right} of {known} rows.\n",
        "### Largest batch\n",
        table(
            (
                "rows of",
                "configuration",
                "model",
                "memory",
                "largest that ran",
                "smallest out of memory",
                "largest predicted",
                "predicted / ran",
            ),
            map(largest_batch_cells, largest),
        ),
        "### Every benchmark row\n",
        table(
            _COLUMNS,
            map(_row, lines),
        ),
        _origin(lines),
    ]
    return "\n".join(parts)


def own_median_cells(median: OwnMedian) -> tuple[str, ...]:
    """A row of the table of medians."""
    errors = (f"{median.median_error:.1%}", f"{median.bias:+.1%}", f"{median.worst:+.1%}")
    return (median.file or "all", median.metric, str(median.num_rows), *errors)


def largest_batch_cells(largest: LargestBatch) -> tuple[str, ...]:
    """A row of the table of largest batch sizes."""
    feasible, ratio = "", ""
    if largest.feasible is not None:
        feasible = str(largest.feasible)
        ratio = f"{largest.feasible / largest.ran:.0%}" if largest.ran else ""
    names = (largest.file, largest.name, largest.model, _memory(largest.memory_cap_bytes))
    return (*names, str(largest.ran), str(largest.failed), feasible, ratio)


def _row(line: OwnLine) -> tuple[str, ...]:
    row = line.row
    cells = [row.name, row.model, _memory(row.memory_cap_bytes), str(row.batch_size), row.status]
    for metric in METRICS:
        pair, error = line.pair(metric), line.error(metric)
        cells.append("" if pair is None else " / ".join(_written(metric, pair[i]) for i in (1, 0)))
        cells.append("" if error is None else f"{error:+.1%}")
    return (*cells, _remark(line))


def _written(metric: str, value: float) -> str:
    return format_bytes(round(value)) if metric == "memory" else format_seconds(value)


def _remark(line: OwnLine) -> str:
    if line.reason:
        return f"not predicted: {line.reason}"
    if line.fit_is_right is False:
        if line.row.status == "ok":
            return "predicted out of memory, but ran"
        return "predicted to fit, but ran out of memory"
    return ""


def _memory(cap_bytes: int | None) -> str:
    return "all" if cap_bytes is None else format_bytes(cap_bytes)


def _origin(lines: Sequence[OwnLine]) -> str:
    devices = {d for line in lines if line.row.measured for d in line.row.measured.devices}
    dates = sorted({line.row.date[:10] for line in lines})
    versions = sorted({f"{k} {v}" for line in lines for k, v in line.row.versions.items()})
    return f"Measured {' and '.join(dates)} on {', '.join(sorted(devices))}; {', '.join(versions)}.\n"
