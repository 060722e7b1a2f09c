"""`planner bench` as it is called: what is refused before anything runs, what is kept when it ends early."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cli.main
from fixtures.train import TRAINED
from planner.bench.rows import PlanRecord, Row, read
from planner.emission import emit
from planner.graph.model import Model
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.schema.request import Request
from planner.search.choose import make_plan
from planner.tracing.store import graph_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the trained model for the CPU."""
    spec = resolve(str(TRAINED))
    graph = graph_for(spec)
    model = Model.of(spec, graph)
    request = Request(prompt_tokens=6, new_tokens=4, dtype="float32", runtimes=("cpu",))
    found: Path = tmp_path_factory.mktemp("plans") / "cpu"
    emit(make_plan(model, load("cpu-16c-64g"), request), graph, found)
    return found


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--out", "/proc/rows.jsonl"], "cannot append rows to /proc/rows.jsonl: "),
        (["--memory-cap", "8GiB"], "--memory-cap simulates a smaller GPU, and cpu-16c-64g has no GPU"),
        (["--new-tokens", "100000"], "takes sequences of up to"),
    ],
)
def test_what_cannot_end_well_is_refused_before_it_runs(
    words: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main.run(["bench", str(folder), "--checkpoint", str(TRAINED), *words]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("planner: ")
    assert len(err.splitlines()) == 1
    assert sentence in err


def test_a_plan_for_a_gpu_that_is_not_there_is_refused_before_weights_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    spec = resolve(str(TRAINED))
    graph = graph_for(spec)
    model = Model.of(spec, graph)
    request = Request(prompt_tokens=6, new_tokens=4, runtimes=("accelerate",))
    emit(make_plan(model, load("t4"), request), graph, tmp_path / "plan")
    weights = tmp_path / "weights"
    words = ["--model", str(TRAINED), "--random-weights", str(weights)]
    assert cli.main.run(["bench", str(tmp_path / "plan"), *words]) == 4
    assert "no GPU is visible here" in capsys.readouterr().err
    assert not weights.exists()


def test_a_file_that_is_in_the_way_is_refused_and_left(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as it was")
    words = ["--checkpoint", str(TRAINED), "--out", str(tmp_path / "file" / "rows.jsonl")]
    assert cli.main.run(["bench", str(folder), *words]) == 3
    assert (tmp_path / "file").read_text() == "as it was"


@pytest.mark.parametrize("seconds", ["0", "-1"])
def test_no_time_at_all_is_a_usage_error(seconds: str, folder: Path) -> None:
    assert cli.main.run(["bench", str(folder), "--timeout", seconds]) == 2


def test_without_a_gpu_it_says_what_was_not_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main.run(["bench", str(folder), "--checkpoint", str(TRAINED)]) == 0
    assert "The runs used no GPU, so no GPU memory was measured." in capsys.readouterr().out


def test_rows_are_in_the_file_while_a_later_batch_still_runs(folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ["--checkpoint", str(TRAINED), "--batch", "1,2,3", "--isolate", "--out", str(rows)]
    child = subprocess.Popen(
        [sys.executable, "-m", "cli", "bench", str(folder), *words], stdout=subprocess.DEVNULL
    )
    try:
        while not (rows.exists() and rows.read_bytes().count(b"\n") >= 2):
            assert child.poll() is None
            time.sleep(0.05)
        # Two more processes have to start and to end.
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGINT)
        child.wait()
    plan, row = read(rows)[:2]
    assert isinstance(plan, PlanRecord)
    assert isinstance(row, Row)
    assert (row.batch_size, row.status) == (1, "ok")
