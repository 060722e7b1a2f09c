"""Medians of the errors by runtime and metric, and what the comparison is held to."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from planner.accuracy.compare import ComparedRow, LadderResult, ladders
from planner.errors import VerificationError

#: The median absolute relative error of time that each table may have.
LARGEST_MEDIAN_ERROR: Final = 0.25
#: How many steps of its ladder the largest batch may be away.
LARGEST_STEP: Final = 1

#: Table that the requirement names → what its rows' runtime begins with.
TABLES: Final = {
    "accelerate table (2 Titan RTX)": "HF Accelerate device_map=auto",
    "BLOOM-176B, accelerate": "HF Accelerate (naive PP)",
    "BLOOM-176B, ds-inference": "DeepSpeed-Inference TP8",
    "BLOOM-176B, ds-zero": "DeepSpeed ZeRO-3 (GPU only)",
}


class Median(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Errors of one runtime in one kind of metric.

    Attributes:
        runtime, kind: which rows.
        num_rows: published rows.
        num_priced: rows with a number on both sides.
        median_error: median absolute relative error, or None without any.
        bias: median of the errors with their signs.
        fits_right, fits_known: rows where fitting is predicted right, of those that say whether they fitted.
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
    """One table of the requirement: its median error of time, and its ladder."""

    table: str
    median_error: float
    num_rows: int
    ladder: LadderResult | None

    @property
    def holds(self) -> bool:
        """Whether the table is within the bounds."""
        within = self.ladder is None or abs(self.ladder.steps) <= LARGEST_STEP
        return within and self.median_error <= LARGEST_MEDIAN_ERROR


def medians(found: Sequence[ComparedRow]) -> tuple[Median, ...]:
    """One for each runtime and kind of metric, in the order of their first rows."""
    groups: dict[tuple[str, str], list[ComparedRow]] = {}
    for line in found:
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


def verdicts(found: Sequence[ComparedRow]) -> tuple[Verdict, ...]:
    """The tables that the requirement names."""
    by_runtime = {one.runtime.rpartition(", ")[0]: one for one in ladders(found)}
    result = []
    for table, runtime in TABLES.items():
        errors = _errors(line for line in found if line.row.runtime == runtime and line.kind == "time")
        result.append(
            Verdict(
                table=table,
                median_error=statistics.median(map(abs, errors)),
                num_rows=len(errors),
                ladder=by_runtime.get(runtime),
            )
        )
    return tuple(result)


def require(found: Iterable[Verdict]) -> None:
    """Every table is within the bounds.

    Raises:
        VerificationError: naming the tables that are not.
    """
    failed = [one.table for one in found if not one.holds]
    if failed:
        raise VerificationError(
            f"predictions are too far from {' and '.join(failed)}: the median error of time may be "
            f"{LARGEST_MEDIAN_ERROR:.0%}, and the largest batch {LARGEST_STEP} step of the table away"
        )
