"""Our own rows as Markdown, below the published ones."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import msgspec

from planner.accuracy.own import METRICS, Border, OwnLine
from planner.accuracy.tables import table
from planner.sizes import format_bytes, format_seconds

_INTRODUCTION: Final = """\
Rows that `planner bench` wrote, priced again by today's model with the profile of their plan; each cell is
predicted for measured. A step is the mean decode step; memory is what the fullest GPU's allocator reserved,
its context left out.
"""
_COLUMNS: Final = (
    *("configuration", "model", "memory", "batch", "status", "prefill", "error"),
    *("step", "error", "reserved", "error", "remark"),
)


class OwnMedian(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Errors of own rows in one metric: of one file, or of all where it is empty; the worst has its sign."""

    file: str
    metric: str
    num_rows: int
    median_error: float
    bias: float
    worst: float


def own_medians(lines: Sequence[OwnLine]) -> tuple[OwnMedian, ...]:
    """One for each metric that any row has, prefill, decode, memory; then of each of several files."""
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
    """Rows whose fitting is predicted right, and rows where it is known."""
    judged = [line.fit_is_right for line in lines if line.fit_is_right is not None]
    return sum(judged), len(judged)


def own_markdown(lines: Sequence[OwnLine], borders: Sequence[Border]) -> str:
    """What `planner bench` measured: medians, borders and every row."""
    right, known = fits_right(lines)
    parts = [
        "## Our own rows\n",
        _INTRODUCTION,
        table(
            ("rows of", "metric", "rows", "median error", "bias", "worst"),
            map(own_median_cells, own_medians(lines)),
        ),
        f"Whether it fits is right in {right} of {known} rows.\n",
        "### Largest batch\n",
        table(
            (
                "rows of",
                "configuration",
                "model",
                "memory",
                "ran",
                "did not run",
                "called feasible",
                "feasible over ran",
            ),
            map(border_cells, borders),
        ),
        "### Every row of our own\n",
        table(
            _COLUMNS,
            map(_row, lines),
        ),
        _origin(lines),
    ]
    return "\n".join(parts)


def own_median_cells(one: OwnMedian) -> tuple[str, ...]:
    """A line of the table of medians."""
    errors = (f"{one.median_error:.1%}", f"{one.bias:+.1%}", f"{one.worst:+.1%}")
    return (one.file or "all", one.metric, str(one.num_rows), *errors)


def border_cells(one: Border) -> tuple[str, ...]:
    """A line of the table of largest batches."""
    ratio = f"{one.feasible / one.ran:.0%}" if one.ran and one.feasible is not None else ""
    feasible = "" if one.feasible is None else str(one.feasible)
    names = (one.file, one.name, one.model, _memory(one.memory_cap_bytes))
    return (*names, str(one.ran), str(one.failed), feasible, ratio)


def _row(line: OwnLine) -> tuple[str, ...]:
    row = line.row
    cells = [row.name, row.model, _memory(row.memory_cap_bytes), str(row.batch_size), row.status]
    for metric in METRICS:
        pair, error = line.pair(metric), line.error(metric)
        cells.append("" if pair is None else " for ".join(_written(metric, pair[i]) for i in (1, 0)))
        cells.append("" if error is None else f"{error:+.1%}")
    return (*cells, _remark(line))


def _written(metric: str, value: float) -> str:
    return format_bytes(round(value)) if metric == "memory" else format_seconds(value)


def _remark(line: OwnLine) -> str:
    if line.reason:
        return f"not priced: {line.reason}"
    if line.fit_is_right is False:
        return "called too large, and ran" if line.row.status == "ok" else "called feasible, and did not run"
    return ""


def _memory(cap_bytes: int | None) -> str:
    return "all" if cap_bytes is None else format_bytes(cap_bytes)


def _origin(lines: Sequence[OwnLine]) -> str:
    devices = {d for line in lines if line.row.measured for d in line.row.measured.devices}
    dates = sorted({line.row.date[:10] for line in lines})
    versions = sorted({f"{k} {v}" for line in lines for k, v in line.row.versions.items()})
    return f"Measured {' and '.join(dates)} on {', '.join(sorted(devices))}; {', '.join(versions)}.\n"
