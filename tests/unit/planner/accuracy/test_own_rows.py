"""Benchmark rows priced again: errors, largest_batches, points and the picture of them."""

from functools import cache
from pathlib import Path

import msgspec
import pytest

from planner.accuracy.own import LargestBatch, OwnLine, largest_batches, own_lines, planned_rows
from planner.accuracy.own_report import fits_right, own_markdown, own_medians
from planner.accuracy.points import Point, own_points
from planner.bench.rows import PlanRecord, Row, append, read, record_of
from planner.errors import BadFileError, InvalidInputError
from planner.report.scatter import save_scatter

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
ROWS = RESULTS / "2026-11-21-h100-probed-rows.jsonl"
SECOND = RESULTS / "2026-11-21-h100-second-rows.jsonl"
THIRD = RESULTS / "2026-11-21-h100-third-rows.jsonl"
#: What nobody plans: the default allocators cause fragmentation, which is not modelled.
STOCK = ("accelerate-auto", "resident")


@cache
def all_lines() -> tuple[OwnLine, ...]:
    """The rows of two files, priced once for all tests."""
    return tuple(own_lines([ROWS, THIRD]))


def lines_of(path: Path) -> list[OwnLine]:
    return [line for line in all_lines() if line.file == path.name]


@cache
def all_borders() -> tuple[LargestBatch, ...]:
    """The borders of all files, searched once for all tests."""
    return largest_batches([ROWS, SECOND, THIRD])


def borders_of(path: Path) -> list[LargestBatch]:
    return [border for border in all_borders() if border.file == path.name]


def test_every_row_is_priced_and_none_is_lost() -> None:
    rows = [record for record in read(ROWS) if isinstance(record, Row)]
    lines = lines_of(ROWS)
    assert [line.row for line in lines] == rows
    assert all(line.predicted is not None for line in lines)
    ran = sum(row.status == "ok" for row in rows)
    assert [m.num_rows for m in own_medians(lines)] == [ran] * 3
    assert fits_right(lines)[1] == len(rows)


def test_errors_are_of_the_numbers_in_the_row() -> None:
    line = next(one for one in lines_of(ROWS) if one.row.measured is not None)
    assert line.row.measured is not None
    assert line.predicted is not None
    error = line.error("prefill")
    assert error == pytest.approx(line.predicted.prefill_s / line.row.measured.prefill_s - 1)
    unknown = OwnLine(row=line.row, file=ROWS.name, reason="none")
    assert unknown.error("prefill") is None
    assert unknown.fit_is_right is None


def test_of_several_files_each_has_its_medians() -> None:
    together = own_medians(all_lines())
    assert [one.file for one in together] == [""] * 3 + [ROWS.name] * 3 + [THIRD.name] * 3
    assert together[3].median_error == own_medians(lines_of(ROWS))[0].median_error
    assert together[0].num_rows == together[3].num_rows + together[6].num_rows


def test_plans_stay_within_what_is_promised() -> None:
    """Rows that the probe and the benchmark took from core to core: times within 30 %, memory within 5."""
    lines = [line for line in lines_of(THIRD) if line.row.name not in STOCK]
    found = {one.metric: one for one in own_medians(lines)}
    assert max(found["prefill"].median_error, found["decode"].median_error) < 0.15
    assert max(abs(found["prefill"].worst), abs(found["decode"].worst)) < 0.3
    assert abs(found["memory"].worst) < 0.05
    # None that was recommended ran out of memory, but those that were driven there.
    out = {line.row.name for line in lines if line.row.status == "out_of_memory"}
    assert out
    assert all(name.endswith("largest-64") for name in out)


def test_the_predicted_largest_batch_lies_between_what_ran_and_what_did_not() -> None:
    found = all_borders()
    assert [sum(one.file == path.name for one in found) for path in (ROWS, SECOND, THIRD)] == [6, 11, 8]
    for one in found:
        assert one.ran < one.failed
        assert one.feasible is not None
        if one.name not in STOCK:
            # No batch that ran out of memory is predicted to fit, and few that ran are predicted not to fit.
            assert 0.9 * one.ran <= one.feasible < one.failed


def test_plans_of_one_name_have_largest_batches_of_their_own() -> None:
    """Accelerate's plan ran at the batch at which ZeRO-Inference's, in a folder called the same, did not."""
    lines = [line for line in own_lines([SECOND]) if line.row.name == "gpt-j-6b-8GiB-throughput"]
    assert [(line.row.runtime, line.row.status) for line in lines] == [
        ("accelerate", "ok"),
        ("zero-inference", "out_of_memory"),
    ]
    (border,) = [one for one in borders_of(SECOND) if one.name == "gpt-j-6b-8GiB-throughput"]
    assert (border.ran, border.failed) == (0, lines[1].row.batch_size)


def test_the_table_has_every_row_and_the_plot_every_number(tmp_path: Path) -> None:
    lines = lines_of(ROWS)
    text = own_markdown(lines, borders_of(ROWS))
    assert text.count("| ok |") + text.count("| out_of_memory |") == len(lines)
    points = own_points(lines)
    assert len(points) == sum(m.num_rows for m in own_medians(lines))
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        path = tmp_path / f"plot{suffix}"
        save_scatter([*points, Point("decode step, s", "published", 0.1, 0.2)], "Rows", path)
        assert path.read_bytes().startswith(magic)


def test_a_plot_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\.png or \.svg"):
        save_scatter(own_points(lines_of(ROWS)), "Rows", tmp_path / "plot.pdf")
    with pytest.raises(InvalidInputError, match="no row"):
        save_scatter([], "Rows", tmp_path / "plot.png")


def test_a_row_without_its_plan_is_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append(path, [record for record in read(ROWS) if not isinstance(record, PlanRecord)])
    with pytest.raises(BadFileError, match="without its plan"):
        planned_rows([path])


def test_a_row_of_an_unknown_model_says_why_it_is_not_priced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    record, row = read(ROWS)[:2]
    assert isinstance(record, PlanRecord)
    assert isinstance(row, Row)
    model = msgspec.structs.replace(record.plan.model, name="no-such-model", source="no-such-model")
    unknown = record_of(msgspec.structs.replace(record.plan, model=model))
    renamed = msgspec.structs.replace(row, model="no-such-model", plan_sha256=unknown.sha256)
    append(path, [unknown, renamed])
    (line,) = own_lines([path])
    assert "no-such-model" in line.reason
    assert "not predicted" in own_markdown([line], largest_batches([path]))
