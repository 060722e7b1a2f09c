"""Benchmark rows as a machine would have made them whose profile has other terms."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from planner.accuracy.own import graph_of, planned_rows, workload_of
from planner.bench.repricing import repriced
from planner.bench.rows import Row, append, record_of
from planner.calibrate.terms import with_terms
from planner.cost.time import time
from planner.schema.plan import Plan


def one_of_each(rows: Path) -> list[tuple[Row, Plan]]:
    """The first row of each configuration that ran."""
    found: dict[Any, tuple[Row, Plan]] = {}
    for row, plan in planned_rows([rows]):
        if row.measured is not None:
            found.setdefault((row.name, row.model, row.memory_cap_bytes), (row, plan))
    return list(found.values())


def make_rows(rows: Path, path: Path, truth: Mapping[str, float], noise: Callable[[], float]) -> None:
    """Write one row of each configuration in `rows` to `path`, with the times of a machine of such terms."""
    for row, plan in one_of_each(rows):
        real = msgspec.structs.replace(plan, hardware=with_terms(plan.hardware, truth))
        graph = graph_of(plan.model)
        priced = repriced(real, graph, workload_of(row, plan), memory_cap_bytes=row.memory_cap_bytes)
        times = time(*priced)
        assert row.measured is not None
        measured = msgspec.structs.replace(
            row.measured,
            prefill_s=times["prefill"].total * noise(),
            decode_s=(times["decode"].total * noise(),),
        )
        append(path, [record_of(plan), msgspec.structs.replace(row, measured=measured)])
