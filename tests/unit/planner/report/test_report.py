"""A plan as a page and as pictures."""

import itertools
import re
from pathlib import Path

import msgspec
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fixtures.graphs import layered_graph
from planner.accuracy.points import Point
from planner.cost.time import time
from planner.errors import InvalidInputError
from planner.graph.model import Model
from planner.hardware.load import load
from planner.report.figures import batch_picture, timeline_picture
from planner.report.page import check_path, write_report
from planner.report.scatter import save_scatter
from planner.report.timeline import BatchPoint, Span, batches, spans
from planner.schema.request import Request
from planner.search.best_placement import PricedPlacement
from planner.search.choose import choose_plan
from planner.tracing.load import load_model

MODEL = Model(
    name="layered <b>",
    auto_class="causal-lm",
    dtype="float16",
    graph=layered_graph(40, hidden=5120, vocabulary=50272),
)
PLAN, CANDIDATE = choose_plan(
    MODEL, load("t4"), Request(batch_size=8, new_tokens=4, runtimes=("accelerate",))
)


def _candidate(machine: str, runtime: str) -> PricedPlacement:
    _, priced = choose_plan(MODEL, load(machine), Request(new_tokens=4, runtimes=(runtime,)))
    return priced


def _end_s(priced: PricedPlacement) -> float:
    return max(span.start_s + span.seconds for span in spans(priced))


@pytest.mark.parametrize(
    "machine, runtime, lanes",
    [
        ("t4", "accelerate", {"copy", "compute", "host"}),
        ("4xt4", "accelerate", {"compute", "exchange"}),
        ("cpu-48c-384g", "cpu", {"compute", "host"}),
    ],
)
def test_the_course_of_a_step_lasts_as_long_as_the_step(machine: str, runtime: str, lanes: set[str]) -> None:
    priced = _candidate(machine, runtime)
    found = spans(priced)
    assert {span.lane for span in found} == lanes
    predicted = time(priced.problem, priced.assignment)["decode"]
    assert _end_s(priced) == pytest.approx(predicted.total)
    # One thing after another.
    ends = [span.start_s + span.seconds for span in found]
    assert all(span.start_s >= end - 1e-12 for span, end in zip(found[1:], ends, strict=False))


def test_the_sums_of_tensor_parallel_ranks_are_drawn_in_every_block() -> None:
    model = Model(
        name="llama-2-13b", auto_class="causal-lm", dtype="float16", graph=load_model("llama-2-13b").graph
    )
    _, priced = choose_plan(model, load("4xt4"), Request(runtimes=("deepspeed-tp",)))
    predicted = time(priced.problem, priced.assignment)["decode"]
    sums = [span for span in spans(priced) if span.lane == "exchange"]
    assert len(sums) == 40
    assert sum(span.seconds for span in sums) == pytest.approx(predicted.communication)
    assert _end_s(priced) == pytest.approx(predicted.total)


def test_with_overlap_copies_run_ahead_of_the_work_and_never_beside_the_host() -> None:
    priced = _candidate("t4", "zero-inference")
    assert priced.problem.scenario.execution.overlaps
    found = spans(priced)
    copied = {s.unit: s.start_s + s.seconds for s in found if s.lane == "copy"}
    computed = {s.unit: s.start_s for s in found if s.lane == "compute"}
    assert any(unit in computed for unit in copied)
    assert all(computed[unit] >= end - 1e-12 for unit, end in copied.items() if unit in computed)
    ends: dict[str, float] = {}
    for span in sorted(found, key=lambda one: one.start_s):
        assert span.start_s >= ends.get(span.lane, 0.0) - 1e-12
        others = {"copy": ["host"], "host": ["copy", "compute"], "compute": ["host"]}[span.lane]
        assert all(span.start_s >= ends.get(lane, 0.0) - 1e-12 for lane in others), span
        ends[span.lane] = span.start_s + span.seconds
    parts = time(priced.problem, priced.assignment)["decode"]
    # What is copied first and computed last has nothing beside it.
    assert parts.total <= _end_s(priced) <= 1.03 * parts.total
    drawn_s = sum(span.seconds for span in found if span.lane == "copy")
    assert drawn_s == pytest.approx(parts.weight_movement + parts.compute + parts.kv_movement)


@pytest.mark.parametrize("chosen", [1, 8, 1100, 2048])
@pytest.mark.parametrize("growth", [1.0, 1.03, 1.2, 3.0])
def test_every_axis_of_the_batches_can_be_read(chosen: int, growth: float) -> None:
    """Ticks have labels, however little the values span, and no label touches the next."""
    sizes = sorted({*(2**power for power in range(12)), chosen})
    points = [
        BatchPoint(batch_size=size, step_s=0.07 * growth**at, tokens_per_s=40 * growth**at)
        for at, size in enumerate(sizes)
    ]
    figure = Figure(figsize=(8, 3), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    batch_picture(points, chosen).draw(figure)
    canvas.draw()
    for axes in figure.axes:
        below = [one for one in axes.get_xticklabels() if one.get_text()]
        assert str(chosen) in [one.get_text() for one in below]
        boxes = [one.get_window_extent() for one in below]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
        low, high = axes.get_ylim()
        beside = [one for one in axes.get_yticklabels() if one.get_text()]
        assert sum(low <= one.get_position()[1] <= high for one in beside) >= (2 if growth > 1 else 1)


def test_long_steps_are_in_seconds_and_empty_lanes_are_left_out() -> None:
    for seconds, unit in ((80.0, "seconds"), (0.08, "milliseconds"), (8e-5, "microseconds")):
        figure = Figure()
        timeline_picture([Span(lane="compute", unit="h.0", start_s=0.0, seconds=seconds)], "a step").draw(
            figure
        )
        (axes,) = figure.axes
        assert axes.get_xlabel() == unit
        assert [label.get_text() for label in axes.get_yticklabels()] == ["compute"]
        assert 70 < axes.get_xlim()[1] < 100


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
    with pytest.raises(InvalidInputError, match="is not a folder"):
        write_report(PLAN, CANDIDATE, tmp_path / "none" / "report.html")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InvalidInputError, match="is a folder"):
        check_path(tmp_path / "report.html")


def test_a_report_that_cannot_be_written_is_a_sentence_and_leaves_nothing() -> None:
    with pytest.raises(InvalidInputError, match=r"cannot write /proc/report\.html: "):
        write_report(PLAN, CANDIDATE, Path("/proc/report.html"))


def test_a_report_replaces_another_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "report.svg"
    path.write_text("older")
    write_report(PLAN, CANDIDATE, path)
    assert path.read_bytes().startswith(b"<?xml")
    save_scatter([Point("decode step, s", "own", 1.0, 1.1)], "one row", tmp_path / "rows.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.svg", "rows.png"]


def test_a_priced_machine_says_of_when_its_price_is(tmp_path: Path) -> None:
    plan, priced = choose_plan(MODEL, load("g5.xlarge"), Request(new_tokens=2, runtimes=("accelerate",)))
    path = tmp_path / "report.html"
    write_report(plan, priced, path)
    assert "$1.01 an hour (us-east-1, Linux, on demand, 2026-08-17)" in path.read_text()


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
