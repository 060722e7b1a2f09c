"""Benchmark rows of our own beside what today's cost model says of them."""

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

#: What errors are taken of, in the order of the tables.
METRICS: Final = ("prefill", "decode", "memory")


class OwnLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One benchmark row with its prediction.

    Attributes:
        row: as it was written.
        file: the name of the file that it is in.
        predicted: by today's model, whatever the row's own prediction says; None where there is none.
        reason: why there is none, or empty.
    """

    row: Row
    file: str
    predicted: Predicted | None = None
    reason: str = ""

    def pair(self, metric: str) -> tuple[float, float] | None:
        """Measured and predicted: seconds, or bytes that the fullest GPU reserved; None without both."""
        one, said = self.row.measured, self.predicted
        if one is None or said is None:
            return None
        values = {
            "prefill": (one.prefill_s, said.prefill_s),
            "decode": (one.mean_decode_s, said.decode_s),
            "memory": (max(one.gpu_peak_reserved_bytes, default=0), max(said.gpu_bytes, default=0)),
        }[metric]
        return values if min(values) > 0 else None

    def error(self, metric: str) -> float | None:
        """Predicted over measured, less one."""
        pair = self.pair(metric)
        return None if pair is None else pair[1] / pair[0] - 1

    @property
    def fit_is_right(self) -> bool | None:
        """Whether it is predicted to fit exactly when it ran; None where neither is known."""
        if self.predicted is None or self.row.status == "failed":
            return None
        return self.predicted.fits == (self.row.status == "ok")


class Border(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest batch of one configuration that was driven out of memory.

    Attributes:
        file: the name of the file that the rows are in.
        name, model, memory_cap_bytes: which configuration.
        ran: the largest batch that ran; 0 when none did.
        failed: the smallest that did not.
        feasible: the largest that the cost model calls feasible; None when it has no law for it.
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
        BadFileError: a file cannot be read, or a row's plan is not in it or of another model.
    """
    return tuple(_line(row, plan, path.name) for path in paths for row, plan in _read(path))


def planned_rows(paths: Sequence[Path]) -> tuple[tuple[Row, Plan], ...]:
    """Every row of the files with the plan that it is of.

    Raises:
        BadFileError: as `own_lines`.
    """
    return tuple(pair for path in paths for pair in _read(path))


def workload_of(row: Row, plan: Plan) -> Workload:
    """What a row ran, which may be longer or shorter than what its plan was made for."""
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
        ModelError: the model is not found again where it was when it was planned.
        InvalidInputError: its configuration has changed.
    """
    return load_recorded(model).graph


def borders(paths: Sequence[Path]) -> tuple[Border, ...]:
    """One for each plan with a row out of memory, in the order of their first rows.

    A name may stand for several: other machines' plans, or other runtimes'.
    """
    groups: dict[tuple[str, str, str, str, int | None], list[tuple[Row, Plan]]] = {}
    for path in paths:
        for row, plan in _read(path):
            key = (path.name, row.plan_sha256, row.name, row.model, row.memory_cap_bytes)
            groups.setdefault(key, []).append((row, plan))
    found = []
    for (file, _, name, model, cap), group in groups.items():
        failed = [row.batch_size for row, _ in group if row.status == "out_of_memory"]
        if failed:
            ran = max((row.batch_size for row, _ in group if row.status == "ok"), default=0)
            border = Border(
                file=file,
                name=name,
                model=model,
                memory_cap_bytes=cap,
                ran=ran,
                failed=min(failed),
                feasible=_feasible(*group[0]),
            )
            found.append(border)
    return tuple(found)


def _feasible(row: Row, plan: Plan) -> int | None:
    try:
        graph = graph_of(plan.model)
        return largest_feasible(plan, graph, workload_of(row, plan), memory_cap_bytes=row.memory_cap_bytes)
    except PlannerError:
        return None


def _line(row: Row, plan: Plan, file: str) -> OwnLine:
    # A baseline that was run without a law of its own has no prediction now, either.
    if row.predicted is None:
        return OwnLine(row=row, file=file, reason="the cost model has no law for it")
    try:
        graph = graph_of(plan.model)
        priced = repriced(plan, graph, workload_of(row, plan), memory_cap_bytes=row.memory_cap_bytes)
        return OwnLine(row=row, file=file, predicted=predicted(*priced))
    except PlannerError as error:
        return OwnLine(row=row, file=file, reason=str(error))


def _read(path: Path) -> Iterable[tuple[Row, Plan]]:
    records = bench_rows.read(path)
    plans = {one.sha256: one.plan for one in records if isinstance(one, PlanRecord)}
    for row in records:
        if not isinstance(row, Row):
            continue
        if row.plan_sha256 not in plans:
            raise BadFileError(
                f"{path} has a row of {row.name} at batch {row.batch_size} without its plan "
                f"{row.plan_sha256[:12]}; take the file as planner bench wrote it"
            )
        plan = plans[row.plan_sha256]
        if row.model != plan.model.name:
            raise BadFileError(
                f"{path} has a row of {row.name} at batch {row.batch_size} that is of {row.model}, and its "
                f"plan is of {plan.model.name}; take the file as planner bench wrote it"
            )
        yield row, plan
