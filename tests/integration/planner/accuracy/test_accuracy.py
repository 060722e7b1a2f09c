"""Predicted beside published: the tables that the requirement names, and the command that writes them."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from planner.accuracy.compare import LADDER, ComparedRow, LadderResult, ladders, lines
from planner.accuracy.configurations import outcome
from planner.accuracy.published import PublishedRow, rows
from planner.accuracy.report import markdown
from planner.accuracy.setups import setups
from planner.accuracy.summary import TABLES, Verdict, medians, require, verdicts
from planner.errors import VerificationError


@cache
def _lines() -> tuple[ComparedRow, ...]:
    return lines()


def _row(value: str, *, metric: str = "time_per_token") -> PublishedRow:
    empty = dict.fromkeys(PublishedRow.__struct_fields__, "")
    return PublishedRow(**{**empty, "value": value, "metric": metric, "runtime": "some", "unit": "s"})


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_within_its_bounds(table: str) -> None:
    (found,) = [one for one in verdicts(_lines()) if one.table == table]
    assert found.num_rows >= 2
    assert found.median_error <= 0.25
    assert found.ladder is None or abs(found.ladder.steps) <= 1


def test_no_row_is_left_out() -> None:
    assert [line.row for line in _lines()] == list(rows())
    text = markdown(_lines())
    assert text.count("\n| BLOOM-176B |") == 43
    assert sum(m.num_rows for m in medians(_lines())) == len(rows())
    for line in _lines():
        assert bool(line.reason) == (line.predicted is None)


def test_weights_on_a_gpu_are_those_published() -> None:
    # Weights are arithmetic: where the map is known they must agree to a few per cent.
    errors = [line.relative_error for line in _lines() if line.row.metric == "memory_allocated_per_gpu"]
    assert len(errors) == 6
    assert all(error is not None and abs(error) < 0.03 for error in errors)


def test_errors_are_relative_and_unknown_without_two_numbers() -> None:
    assert ComparedRow(row=_row("2"), predicted=3.0).relative_error == pytest.approx(0.5)
    assert ComparedRow(row=_row("0"), predicted=3.0).relative_error is None
    assert ComparedRow(row=_row("OOM"), predicted=3.0, fits=True).relative_error is None
    assert ComparedRow(row=_row("2"), reason="none").relative_error is None


@pytest.mark.parametrize(
    "value, fits, right", [("OOM", True, False), ("OOM", False, True), ("1", False, False)]
)
def test_fitting_is_right_when_both_say_so(value: str, fits: bool, right: bool) -> None:
    assert ComparedRow(row=_row(value), predicted=1.0, fits=fits).fit_is_right is right


def test_steps_are_counted_on_the_ladder() -> None:
    assert LadderResult(runtime="", published=8, predicted=32).steps == 2
    assert LadderResult(runtime="", published=8, predicted=0).steps == -2
    assert all(one.predicted in (0, *LADDER) for one in ladders(_lines()))


def test_a_table_out_of_bounds_is_named() -> None:
    good = Verdict(table="a", median_error=0.2, num_rows=3, ladder=None)
    far = Verdict(table="b", median_error=0.3, num_rows=3, ladder=None)
    steps = LadderResult(runtime="", published=8, predicted=32)
    wide = Verdict(table="c", median_error=0.1, num_rows=3, ladder=steps)
    require([good])
    with pytest.raises(VerificationError, match="too far from b and c"):
        require([good, far, wide])


def test_the_cache_that_is_sent_to_the_first_gpu_costs_time_and_memory() -> None:
    setup = next(s for s in setups() if s.configuration == "accelerate-low-first")
    one, many = outcome(setup, 1), outcome(setup, 32)
    # The first GPU holds no weights, and twice the cache of all the others.
    first = many.memory["gpu:0"]["decode"]
    others = sum(many.memory[f"gpu:{i}"]["decode"].kv for i in range(1, 8))
    assert first.weights == 0
    assert first.kv == 2 * others > 0
    assert many.total_s > 1.2 * one.total_s
    assert outcome(setup, 32).fits
    assert not outcome(setup, 64).fits


def test_the_command_writes_the_table_and_sums_it_up(tmp_path: Path, repository: Path) -> None:
    out = tmp_path / "accuracy.md"
    run = subprocess.run(
        [sys.executable, "-m", "cli", "accuracy", "--out", str(out)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "96 published rows" in run.stdout
    text = out.read_text()
    assert text.startswith("# The cost model against published measurements")
    assert sum(line.startswith("| ") and "time_per_token" in line for line in text.splitlines()) == 45
    assert max(map(len, run.stdout.splitlines())) <= 80
