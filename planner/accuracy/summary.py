"""Medians of the errors by runtime and metric, and the bounds that published tables must be within."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from planner.accuracy.compare import ComparedRow, LadderResult, ladders
from planner.errors import VerificationError

#: Upper bound of the median absolute relative error of time in each table.
LARGEST_MEDIAN_ERROR: Final = 0.25
#: Upper bound of the distance between published and predicted largest batch size, in steps of the table.
LARGEST_STEP: Final = 1

#: Name of a table with bounds → runtime of its rows.
TABLES: Final = {
    "accelerate table (2 Titan RTX)": "HF Accelerate device_map=auto",
    "BLOOM-176B, accelerate": "HF Accelerate (naive PP)",
    "BLOOM-176B, ds-inference": "DeepSpeed-Inference TP8",
    "BLOOM-176B, ds-zero": "DeepSpeed ZeRO-3 (GPU only)",
}


class Median(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Errors of one runtime in one kind of metric.

    Attributes:
        runtime, kind: identify the rows.
        num_rows: number of published rows.
        num_priced: number of rows with a published and a predicted number.
        median_error: median absolute relative error; None if `num_priced` is 0.
        bias: median of the signed relative errors; None if `num_priced` is 0.
        fits_right, fits_known: number of rows for which it is predicted correctly whether they fit, and
            number of rows that say whether they fitted.
    """

    runtime: str
    kind: str
    num_rows: int
    num_priced: int
    median_error: float | None
    bias: float | None
    fits_right: int
    fits_known: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The result for one table with bounds.

    Attributes:
        table: name of the table, a key of `TABLES`.
        median_error: median absolute relative error of its times.
        num_rows: number of times with a prediction.
        ladder: published and predicted largest batch size; None if the table has no run out of memory.
    """

    table: str
    median_error: float
    num_rows: int
    ladder: LadderResult | None

    @property
    def holds(self) -> bool:
        """Whether the table is within the bounds."""
        within = self.ladder is None or abs(self.ladder.steps) <= LARGEST_STEP
        return within and self.median_error <= LARGEST_MEDIAN_ERROR


def medians(compared: Sequence[ComparedRow]) -> tuple[Median, ...]:
    """Medians for each runtime and kind of metric, in the order of their first rows."""
    groups: dict[tuple[str, str], list[ComparedRow]] = {}
    for line in compared:
        groups.setdefault((line.row.runtime, line.kind), []).append(line)
    return tuple(_median(runtime, kind, group) for (runtime, kind), group in groups.items())


def _median(runtime: str, kind: str, group: Sequence[ComparedRow]) -> Median:
    errors = _errors(group)
    judged = [line.fit_is_right for line in group if line.fit_is_right is not None]
    return Median(
        runtime=runtime,
        kind=kind,
        num_rows=len(group),
        num_priced=len(errors),
        median_error=statistics.median(map(abs, errors)) if errors else None,
        bias=statistics.median(errors) if errors else None,
        fits_right=sum(judged),
        fits_known=len(judged),
    )


def _errors(group: Iterable[ComparedRow]) -> list[float]:
    return [line.relative_error for line in group if line.relative_error is not None]


def verdicts(compared: Sequence[ComparedRow]) -> tuple[Verdict, ...]:
    """The results for the tables with bounds."""
    by_runtime = {ladder.runtime.rpartition(", ")[0]: ladder for ladder in ladders(compared)}
    result = []
    for table, runtime in TABLES.items():
        errors = _errors(line for line in compared if line.row.runtime == runtime and line.kind == "time")
        result.append(
            Verdict(
                table=table,
                median_error=statistics.median(map(abs, errors)),
                num_rows=len(errors),
                ladder=by_runtime.get(runtime),
            )
        )
    return tuple(result)


def require(results: Iterable[Verdict]) -> None:
    """Check that every table is within the bounds.

    Raises:
        VerificationError: a table is not; the message names all such tables.
    """
    failed = [verdict.table for verdict in results if not verdict.holds]
    if failed:
        raise VerificationError(
            f"predictions are too far from {' and '.join(failed)}: the median error of time may be at most "
            f"{LARGEST_MEDIAN_ERROR:.0%}, and the largest batch at most {LARGEST_STEP} step of the table away"
        )
