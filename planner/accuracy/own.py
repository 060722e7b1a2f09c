"""Compares benchmark rows with the predictions of the current cost model."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from planner.bench import rows as bench_rows
from planner.bench.repricing import largest_feasible, predicted, repriced
from planner.bench.rows import PlanRecord, Predicted, Row
from planner.errors import BadFileError, PlannerError
from planner.graph.schema import ModuleGraph
from planner.schema.plan import ModelRef, Plan
from planner.schema.workload import Workload
from planner.tracing.load import load_recorded

#: Metrics for which errors are computed, in the order of the tables.
METRICS: Final = ("prefill", "decode", "memory")


class OwnLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One benchmark row with its prediction.

    Attributes:
        row: the row as it was written.
        file: name of its file.
        predicted: prediction of the current cost model, independent of the prediction in the row; None if
            there is none.
        reason: why there is no prediction; otherwise empty.
    """

    row: Row
    file: str
    predicted: Predicted | None = None
    reason: str = ""

    def pair(self, metric: str) -> tuple[float, float] | None:
        """The measured and the predicted value of a metric; None without both.

        Times are in seconds. Memory is the largest number of bytes reserved on any GPU.
        """
        measured, predicted = self.row.measured, self.predicted
        if measured is None or predicted is None:
            return None
        values = {
            "prefill": (measured.prefill_s, predicted.prefill_s),
            "decode": (measured.mean_decode_s, predicted.decode_s),
            "memory": (
                max(measured.gpu_peak_reserved_bytes, default=0),
                max(predicted.gpu_bytes, default=0),
            ),
        }[metric]
        return values if min(values) > 0 else None

    def error(self, metric: str) -> float | None:
        """Predicted divided by measured, minus one; None without both."""
        pair = self.pair(metric)
        return None if pair is None else pair[1] / pair[0] - 1

    @property
    def fit_is_right(self) -> bool | None:
        """Whether it is predicted correctly that the row fits or does not fit; None where that is unknown."""
        if self.predicted is None or self.row.status == "failed":
            return None
        return self.predicted.fits == (self.row.status == "ok")


class LargestBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest batch size of one configuration that also has a row out of memory.

    Attributes:
        file: name of the file with the rows.
        name, model, memory_cap_bytes: identify the configuration; as in its rows.
        ran: largest batch size that ran; 0 when none did.
        failed: smallest batch size that ran out of memory.
        feasible: largest batch size that the cost model predicts to fit; None when it cannot predict it.
    """

    file: str
    name: str
    model: str
    memory_cap_bytes: int | None
    ran: int
    failed: int
    feasible: int | None


def own_lines(paths: Sequence[Path]) -> tuple[OwnLine, ...]:
    """Every row of the files, in their order.

    Raises:
        BadFileError: a file cannot be read, a row's plan is missing in it, or the plan is of another model.
    """
    return tuple(_line(row, plan, path.name) for path in paths for row, plan in _read(path))


def planned_rows(paths: Sequence[Path]) -> tuple[tuple[Row, Plan], ...]:
    """Every row of the files with its plan.

    Raises:
        BadFileError: as `own_lines`.
    """
    return tuple(pair for path in paths for pair in _read(path))


def workload_of(row: Row, plan: Plan) -> Workload:
    """The workload of a row; its batch size and lengths may differ from those of its plan."""
    return msgspec.structs.replace(
        plan.workload,
        batch_size=row.batch_size,
        prompt_tokens=row.prompt_tokens,
        new_tokens=row.new_tokens,
    )


@cache
def graph_of(model: ModelRef) -> ModuleGraph:
    """The graph of a plan's model.

    Raises:
        ModelError: the model is no longer where it was when the plan was made.
        InvalidInputError: the model's configuration has changed.
    """
    return load_recorded(model).graph


def largest_batches(paths: Sequence[Path]) -> tuple[LargestBatch, ...]:
    """One result for each plan with a row out of memory, in the order of their first rows.

    Plans of different machines or runtimes may have the same name; each has a result of its own.
    """
    groups: dict[tuple[str, str, str, str, int | None], list[tuple[Row, Plan]]] = {}
    for path in paths:
        for row, plan in _read(path):
            key = (path.name, row.plan_sha256, row.name, row.model, row.memory_cap_bytes)
            groups.setdefault(key, []).append((row, plan))
    results = []
    for (file, _, name, model, cap), group in groups.items():
        failed = [row.batch_size for row, _ in group if row.status == "out_of_memory"]
        if failed:
            ran = max((row.batch_size for row, _ in group if row.status == "ok"), default=0)
            results.append(
                LargestBatch(
                    file=file,
                    name=name,
                    model=model,
                    memory_cap_bytes=cap,
                    ran=ran,
                    failed=min(failed),
                    feasible=_feasible(*group[0]),
                )
            )
    return tuple(results)


def _feasible(row: Row, plan: Plan) -> int | None:
    try:
        graph = graph_of(plan.model)
        return largest_feasible(plan, graph, workload_of(row, plan), memory_cap_bytes=row.memory_cap_bytes)
    except PlannerError:
        return None


def _line(row: Row, plan: Plan, file: str) -> OwnLine:
    # A baseline without a runtime model had no prediction when it was run, and has none now.
    if row.predicted is None:
        return OwnLine(row=row, file=file, reason="the cost model cannot predict this configuration")
    try:
        graph = graph_of(plan.model)
        priced = repriced(plan, graph, workload_of(row, plan), memory_cap_bytes=row.memory_cap_bytes)
        return OwnLine(row=row, file=file, predicted=predicted(*priced))
    except PlannerError as error:
        return OwnLine(row=row, file=file, reason=str(error))


def _read(path: Path) -> Iterable[tuple[Row, Plan]]:
    records = bench_rows.read(path)
    plans = {record.sha256: record.plan for record in records if isinstance(record, PlanRecord)}
    for row in records:
        if not isinstance(row, Row):
            continue
        if row.plan_sha256 not in plans:
            raise BadFileError(
                f"{path} has a row of {row.name} at batch {row.batch_size} without its plan "
                f"{row.plan_sha256[:12]}; use the unmodified file that planner bench wrote"
            )
        plan = plans[row.plan_sha256]
        if row.model != plan.model.name:
            raise BadFileError(
                f"{path} has a row of {row.name} at batch {row.batch_size} that is of {row.model}, and its "
                f"plan is of {plan.model.name}; use the unmodified file that planner bench wrote"
            )
        yield row, plan
