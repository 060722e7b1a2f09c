"""A plan as a page and as pictures."""

import re
from pathlib import Path

import msgspec
import pytest

from fixtures.graphs import layered_graph
from planner.errors import InvalidInputError
from planner.hardware.load import load
from planner.models.traced import Model
from planner.planning import choose
from planner.report.course import batches, spans
from planner.report.page import write_report
from planner.request import Request

MODEL = Model(
    name="layered <b>",
    auto_class="causal-lm",
    dtype="float16",
    graph=layered_graph(40, hidden=5120, vocabulary=50272),
)
PLAN, CANDIDATE = choose(MODEL, load("t4"), Request(batch_size=8, new_tokens=4, runtimes=("accelerate",)))


def test_the_course_of_a_step_lasts_as_long_as_the_step() -> None:
    found = spans(CANDIDATE)
    assert {span.lane for span in found} == {"copy", "compute", "host"}
    end = max(span.start_s + span.seconds for span in found)
    # What is outside every unit (the glue) is not drawn.
    assert end == pytest.approx(PLAN.prediction.time["decode"].total, rel=0.02)
    for lane in ("copy", "compute", "host"):
        mine = [span for span in found if span.lane == lane]
        ends = [span.start_s + span.seconds for span in mine]
        assert all(span.start_s >= before - 1e-12 for span, before in zip(mine[1:], ends, strict=False))


def test_with_overlap_copies_run_ahead_of_the_work_and_no_work_before_its_copy() -> None:
    import dataclasses

    problem = dataclasses.replace(
        CANDIDATE.problem, settings=dataclasses.replace(CANDIDATE.problem.settings, overlaps=True)
    )
    found = spans(dataclasses.replace(CANDIDATE, problem=problem))
    copied = {s.unit: s.start_s + s.seconds for s in found if s.lane == "copy"}
    computed = {s.unit: s.start_s for s in found if s.lane == "compute"}
    assert any(unit in computed for unit in copied)
    assert all(computed[unit] >= end - 1e-12 for unit, end in copied.items() if unit in computed)
    plain = max(span.start_s + span.seconds for span in spans(CANDIDATE))
    assert max(span.start_s + span.seconds for span in found) < plain


def test_batches_hold_the_chosen_one_and_grow() -> None:
    points = batches(CANDIDATE)
    sizes = [point.batch_size for point in points]
    assert 8 in sizes
    assert sizes == sorted(set(sizes))
    chosen = points[sizes.index(8)]
    assert chosen.step_s == pytest.approx(PLAN.prediction.time["decode"].total)
    assert chosen.tokens_per_s == pytest.approx(PLAN.prediction.tokens_per_s)


def test_the_page_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(PLAN, CANDIDATE, path)
    page = path.read_text()
    assert "layered &lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<svg") == 3
    assert not re.search(r"""(src|href)\s*=\s*["']https?:""", page)
    for place in ("gpu:0", "cpu"):
        assert f"<td>{place}</td>" in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"report{suffix}"
    write_report(PLAN, CANDIDATE, path)
    starts = {".png": b"\x89PNG", ".svg": b"<?xml"}
    assert path.read_bytes().startswith(starts[suffix])


def test_another_suffix_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"ends in \.html"):
        write_report(PLAN, CANDIDATE, tmp_path / "report.pdf")
    with pytest.raises(InvalidInputError, match="is no folder"):
        write_report(PLAN, CANDIDATE, tmp_path / "none" / "report.html")


def test_the_plan_is_the_one_that_is_recorded() -> None:
    assert PLAN.prediction.total_s == CANDIDATE.total_s
    assert msgspec.json.decode(msgspec.json.encode(PLAN), type=type(PLAN)) == PLAN


def test_rows_of_the_model_are_drawn_and_those_of_others_are_not(tmp_path: Path) -> None:
    rows = Path(__file__).parents[3] / "benchmarks" / "results" / "2026-11-21-h100-probed-rows.jsonl"
    path = tmp_path / "report.html"
    for name, num_pictures in (("opt-13b", 4), ("layered", 3)):
        model = msgspec.structs.replace(PLAN.model, name=name)
        write_report(msgspec.structs.replace(PLAN, model=model), CANDIDATE, path, [rows])
        page = path.read_text()
        assert page.count("<svg") == num_pictures
        assert ("Predicted against measured: opt-13b" in page) is (num_pictures == 4)
