"""Real folders at real batches in real processes: every outcome is a row."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cli.commands.bench import command
from fixtures import tiny
from fixtures.plans import plan_with
from fixtures.train import TRAINED
from planner.bench.baselines import BASELINES, write_baseline
from planner.bench.repricing import repriced
from planner.bench.rows import PlanRecord, Row, read
from planner.bench.run import Job, bench
from planner.cost.predict import predict
from planner.emission import emit
from planner.errors import InvalidInputError, UnknownNameError
from planner.graph.model import Model
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.models.resolve import resolve
from planner.runtimes.registry import runtime_models
from planner.schema.plan import Plan, encode
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.choose import make_plan
from planner.tracing.store import graph_for
from planner.verification.tiers import one_tier_down

LENGTHS: dict[str, Any] = {"prompt_tokens": 6, "new_tokens": 4}
#: Sequences whose token ids alone are more than any address space.
TOO_MANY = 2**42


@pytest.fixture(scope="module")
def trained() -> tuple[Model, ModuleGraph]:
    spec = resolve(str(TRAINED))
    graph = graph_for(spec)
    return Model.of(spec, graph), graph


def emitted(model: Model, runtime: str, folder: Path) -> Plan:
    """A folder for this machine: the CPU's plan, or a GPU's one tier down, streamed from disk."""
    request = Request(**LENGTHS, dtype="float32", batch_size=2, runtimes=(runtime,))
    profile = load("cpu-16c-64g")
    if runtime == "accelerate":
        profile = apply(load("t4"), gpu_memory_bytes=2**30, nvme=(10**12, 3e9))
    plan = make_plan(model, profile, request)
    if runtime == "accelerate":
        plan = one_tier_down(plan)
    emit(plan, model.graph, folder)
    return plan


def job(plan: Plan, graph: ModuleGraph, folder: Path, **options: Any) -> Job:
    values: dict[str, Any] = {"name": folder.name, "checkpoint": TRAINED, "weights": "checkpoint", **LENGTHS}
    return Job(folder=folder, plan=plan, graph=graph, **values | options)


def check_ran(row: Row, new_tokens: int = 4, *, calls: range = range(1, 6)) -> None:
    assert (row.status, row.said) == ("ok", "")
    measured = row.measured
    assert measured is not None
    assert measured.load_s > 0
    assert measured.prefill_s > 0
    assert len(measured.decode_s) in [count * (new_tokens - 1) for count in calls]
    assert min(measured.decode_s) > 0
    assert measured.host_peak_bytes > 2**20
    assert measured.load_host_peak_bytes > 2**20
    assert row.tokens_per_s > 0


@pytest.mark.parametrize("isolate", [False, True])
def test_a_cpu_plan_at_two_batches(isolate: bool, trained: tuple[Model, ModuleGraph], tmp_path: Path) -> None:
    model, graph = trained
    plan = emitted(model, "cpu", tmp_path / "cpu")
    reported: list[Row] = []
    rows = bench(job(plan, graph, tmp_path / "cpu", batches=(3, 1), isolate=isolate), reported.append)
    assert [row.batch_size for row in rows] == [1, 3]
    assert [row.batch_size for row in reported] == [3, 1]
    for row in rows:
        check_ran(row)
        assert row.predicted is not None
        assert row.predicted.fits
        assert row.predicted.gpu_bytes == ()
        assert row.versions["torch"]
    assert rows[0].measured is not None
    assert rows[1].measured is not None
    assert (rows[0].measured.load_s == rows[1].measured.load_s) is not isolate


def test_weights_on_disk_and_several_calls(trained: tuple[Model, ModuleGraph], tmp_path: Path) -> None:
    model, graph = trained
    folder = tmp_path / "streamed"
    plan = emitted(model, "accelerate", folder)
    (row,) = bench(job(plan, graph, folder, batches=(2,), repeat=7, is_predictable=False))
    assert row.predicted is None
    check_ran(row, calls=range(7, 8))


def test_out_of_memory_is_a_row_and_the_process_survives(
    trained: tuple[Model, ModuleGraph], tmp_path: Path
) -> None:
    model, graph = trained
    folder = tmp_path / "cpu"
    plan = emitted(model, "cpu", folder)
    rows = bench(job(plan, graph, folder, batches=(1, TOO_MANY, 2)))
    assert [row.batch_size for row in rows] == [1, 2, TOO_MANY]
    assert [row.status for row in rows] == ["ok", "ok", "out_of_memory"]
    assert "memory" in rows[2].said
    assert rows[2].predicted is not None
    assert not rows[2].predicted.fits
    # One process, one load: it went on after the failure.
    assert rows[0].measured is not None
    assert rows[1].measured is not None
    assert rows[0].measured.load_s == rows[1].measured.load_s


DYING = {
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "out_of_memory", "SIGKILL"),
    "broken": ('raise ValueError("no such thing")', "failed", "no such thing"),
    "exhausted": ('raise RuntimeError("CUDA out of memory. Tried to")', "out_of_memory", "while loading"),
    "unfit": ('stop("this is not the checkpoint", 3)', "failed", "this is not the checkpoint"),
}


@pytest.mark.parametrize("how", DYING)
def test_whatever_ends_a_process_is_a_row(
    how: str, trained: tuple[Model, ModuleGraph], tmp_path: Path
) -> None:
    model, graph = trained
    folder = tmp_path / "dying"
    plan = emitted(model, "cpu", folder)
    code, status, words = DYING[how]
    body = "\n    ".join(code.splitlines())
    (folder / "generate.py").write_text(
        f"from generation import main, stop\n\n\ndef load(checkpoint, offload_folder):\n    {body}\n"
    )
    rows = bench(job(plan, graph, folder, batches=(1, 2)))
    assert rows[0].status == status
    assert words in rows[0].said
    assert all(row.measured is None for row in rows)


def test_batches_must_be_positive(trained: tuple[Model, ModuleGraph], tmp_path: Path) -> None:
    model, graph = trained
    plan = emitted(model, "cpu", tmp_path / "cpu")
    with pytest.raises(InvalidInputError, match="at least 1"):
        job(plan, graph, tmp_path / "cpu", batches=(0,))


@pytest.mark.parametrize("baseline", ["cpu", "accelerate-auto"])
def test_a_baseline_with_random_weights(baseline: str, tmp_path: Path) -> None:
    """From the command line, with what `--out` and `--json` say of it."""
    source, out = tmp_path / "opt", tmp_path / "rows.jsonl"
    tiny.save("opt", source)
    words = ["--baseline", baseline, "--model", str(source), "--hardware", "cpu-16c-64g", "--batch", "1,2"]
    words += ["--dtype", "float32", "--prompt", "5", "--new-tokens", "3", "--out", str(out), "--json"]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    record, *rows = read(out)
    assert isinstance(record, PlanRecord)
    assert msgspec.convert(said, list[Row]) == list(rows)
    for row in rows:
        assert isinstance(row, Row)
        check_ran(row, new_tokens=3)
        assert (row.name, row.weights, row.plan_sha256) == (baseline, "random", record.sha256)
        assert row.predicted is not None


def test_a_plan_from_the_command_line(trained: tuple[Model, ModuleGraph], tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    emitted(trained[0], "cpu", folder)
    words = [
        str(folder),
        "--checkpoint",
        str(TRAINED),
        "--batch",
        "2",
        "--random-weights",
        str(tmp_path / "w"),
    ]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for heading in ("measured", "memory", "predicted and measured", "P99", "reserved"):
        assert heading in result.stdout
    assert not (tmp_path / "w").exists()


def test_another_model_than_the_planned_one_is_refused(
    trained: tuple[Model, ModuleGraph], tmp_path: Path
) -> None:
    folder = tmp_path / "plan"
    emitted(trained[0], "cpu", folder)
    result = CliRunner().invoke(command, [str(folder), "--model", "gpt2"])
    assert isinstance(result.exception, InvalidInputError)
    assert "not the model that was planned" in str(result.exception)


@pytest.mark.parametrize(
    "words",
    [[], ["folder", "--baseline", "cpu"], ["--baseline", "cpu"], ["--baseline", "cpu", "--model", "gpt2"]],
)
def test_what_cannot_be_meant_is_a_usage_error(words: list[str]) -> None:
    assert CliRunner().invoke(command, words).exit_code == 2


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_a_folder_with_a_prediction(
    name: str, trained: tuple[Model, ModuleGraph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU's profile: nothing is run, and the cost model predicts each."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    spec = resolve(str(TRAINED))
    workload = Workload(batch_size=2, dtype="float16", **LENGTHS)
    plan, is_predictable, runtime_model = write_baseline(
        name, spec, trained[0], load("t4"), workload, tmp_path / "folder"
    )
    assert is_predictable
    assert predict(*repriced(plan, trained[1], workload, runtime_model=runtime_model)) == plan.prediction
    assert plan.prediction.tokens_per_s > 0
    assert plan.main_device == ("cpu" if name == "cpu" else "gpu:0")
    written = {path.name for path in (tmp_path / "folder").iterdir()}
    assert {"generate.py", "generation.py", "plan.json"} <= written
    assert ("ds_config.json" in written) == (name == "zero-four-lines")
    # Asked about a configuration, DeepSpeed is told to do without a GPU; what is benchmarked next is not.
    assert "DS_ACCELERATOR" not in os.environ


def test_baselines_that_need_a_gpu_say_so(trained: tuple[Model, ModuleGraph], tmp_path: Path) -> None:
    spec = resolve(str(TRAINED))
    workload = Workload(batch_size=2, dtype="float32", **LENGTHS)
    host = load("cpu-16c-64g")
    for name in ("resident", "zero-four-lines"):
        with pytest.raises(InvalidInputError, match="needs a GPU"):
            write_baseline(name, spec, trained[0], host, workload, tmp_path / name)
    with pytest.raises(UnknownNameError, match="accelerate-auto"):
        write_baseline("best", spec, trained[0], host, workload, tmp_path / "best")


@pytest.mark.parametrize("name", ["resident", "zero-four-lines"])
def test_a_gpu_baseline_runs_one_tier_down(
    name: str, trained: tuple[Model, ModuleGraph], tmp_path: Path
) -> None:
    """Its own script, on the CPU; the prediction is the GPU's."""
    folder = tmp_path / "folder"
    spec = resolve(str(TRAINED))
    workload = Workload(batch_size=2, dtype="float32", **LENGTHS)
    plan, is_predictable, runtime_model = write_baseline(name, spec, trained[0], load("t4"), workload, folder)
    (folder / "plan.json").write_bytes(encode(one_tier_down(plan)))
    rows = bench(
        job(
            plan,
            trained[1],
            folder,
            batches=(1, 2),
            is_predictable=is_predictable,
            runtime_model=runtime_model,
        )
    )
    for row in rows:
        check_ran(row)
        assert row.predicted is not None
        assert len(row.predicted.gpu_bytes) == 1


def test_a_cap_below_a_context_is_refused(trained: tuple[Model, ModuleGraph], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    spec = resolve(str(TRAINED))
    workload = Workload(batch_size=2, dtype="float16", **LENGTHS)
    plan, _, runtime_model = write_baseline("resident", spec, trained[0], load("t4"), workload, folder)
    with pytest.raises(InvalidInputError, match="CUDA context"):
        bench(
            job(plan, trained[1], folder, batches=(1,), runtime_model=runtime_model, memory_cap_bytes=2**20)
        )


def test_several_ranks_with_streams_of_their_own(trained: tuple[Model, ModuleGraph], tmp_path: Path) -> None:
    """Two processes, started by the folder's own code; one row describes both."""
    folder = tmp_path / "ranks"
    (runtime_model,) = runtime_models(["zero-inference"])
    profile = load("2xt4")
    way = next(
        way
        for way in runtime_model.configurations(profile)
        if way.num_ranks == 2 and way.streams_from == ("cpu",)
    )
    workload = Workload(batch_size=1, dtype="float32", **LENGTHS)
    plan, graph = plan_with(str(TRAINED), profile, runtime_model, way, workload)
    down = one_tier_down(plan)
    emit(down, graph, folder)
    rows = bench(job(plan, graph, folder, batches=(2, 3)))
    assert [row.batch_size for row in rows] == [2, 3]
    for row in rows:
        check_ran(row)
        assert row.predicted is not None
        assert len(row.predicted.gpu_bytes) == 2
    assert rows[0].measured is not None
    # Of both processes: one that has loaded torch takes more than half of this.
    assert rows[0].measured.host_peak_bytes > 300 * 2**20
