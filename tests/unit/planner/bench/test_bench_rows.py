"""Rows and the file that keeps them."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.bench.rows import Measured, PlanRecord, Row, append, read, record_of
from planner.errors import BadFileError
from planner.graph.model import Model
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.schema.plan import Plan
from planner.schema.request import Request
from planner.search.choose import make_plan
from planner.tracing.store import graph_for


@pytest.fixture(scope="module")
def plan() -> Plan:
    spec = resolve("gpt2")
    model = Model.of(spec, graph_for(spec))
    return make_plan(model, load("cpu-16c-64g"), Request(runtimes=("cpu",)))


def row(plan: Plan, **changes: Any) -> Row:
    measured = Measured(
        load_s=3.0,
        prefill_s=0.5,
        decode_s=(0.1, 0.2, 0.3),
        gpu_peak_allocated_bytes=(),
        gpu_peak_reserved_bytes=(),
        host_peak_bytes=10**9,
        load_host_peak_bytes=2 * 10**9,
        devices=(),
    )
    values: dict[str, Any] = {
        "date": "2026-01-02",
        "name": "a",
        "plan_sha256": record_of(plan).sha256,
        "model": "gpt2",
        "runtime": "cpu",
        "dtype": "float32",
        "batch_size": 8,
        "prompt_tokens": 16,
        "new_tokens": 4,
        "weights": "random",
        "memory_cap_bytes": None,
        "status": "ok",
        "said": "",
        "measured": measured,
        "predicted": None,
        "versions": {"torch": "2.11"},
    }
    return Row(**values | changes)


def test_what_follows_from_a_row(plan: Plan) -> None:
    one = row(plan)
    assert one.measured is not None
    assert one.measured.mean_decode_s == pytest.approx(0.2)
    assert one.measured.decode_at(0.5) == pytest.approx(0.2)
    assert one.measured.decode_at(0.9) == pytest.approx(0.28)
    assert one.tokens_per_s == pytest.approx(8 * 4 / (0.5 + 3 * 0.2))


def test_repeated_calls_do_not_make_a_call_longer(plan: Plan) -> None:
    once = row(plan)
    assert once.measured is not None
    thrice = row(plan, measured=Measured(**{
        field: getattr(once.measured, field) * (3 if field == "decode_s" else 1)
        for field in once.measured.__struct_fields__
    }))  # fmt: skip
    assert thrice.tokens_per_s == pytest.approx(once.tokens_per_s)


def test_a_row_that_did_not_run_has_no_rate(plan: Plan) -> None:
    assert row(plan, status="out_of_memory", said="no", measured=None).tokens_per_s == 0


def test_a_file_keeps_rows_with_their_plans(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append(file, [record_of(plan), row(plan)])
    append(file, [row(plan, batch_size=16, status="out_of_memory", said="no", measured=None)])
    first, second, third = read(file)
    assert isinstance(first, PlanRecord)
    assert first.plan == plan
    assert isinstance(second, Row)
    assert second == row(plan)
    assert second.plan_sha256 == first.sha256
    assert isinstance(third, Row)
    assert (third.batch_size, third.measured) == (16, None)


@pytest.mark.parametrize("line", ['{"kind": "row"}', "not JSON", '{"kind": "other"}', '{"kind":"row","x":1}'])
def test_a_damaged_line_is_named(line: str, plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append(file, [row(plan)])
    with file.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(BadFileError, match="line 2"):
        read(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"none\.jsonl"):
        read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"batch_size": -4},
        {"prompt_tokens": 0},
        {"memory_cap_bytes": -4},
        {"status": "out_of_memory"},
        {"measured": None},
    ],
)
def test_a_row_that_no_benchmark_can_have_written_is_refused(
    plan: Plan, change: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    append(path, [row(plan)])
    assert read(path) == (row(plan),)
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(BadFileError, match="line 1, is not a benchmark row"):
        read(path)
