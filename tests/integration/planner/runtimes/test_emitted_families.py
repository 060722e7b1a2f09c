"""Every family through an emitted folder, mapped one tier down: the tokens are the plain model's.

Each plan is mixed down to the leaf: whole blocks on the CPU, blocks whose parts live on GPU, CPU and disk.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import load_file, save_file

from fixtures import tiny
from fixtures.plans import problem_of
from fixtures.train import TRAINED
from planner.cost.assignment import Assignment
from planner.device_map.check import check
from planner.emission import emit
from planner.errors import InvalidInputError, ModelError, PlanFileError, RuntimeFailure
from planner.graph.model import Model
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.runtimes.accelerate.emit import device_map_of
from planner.runtimes.accelerate.model import RUNTIME_MODEL
from planner.schema.execution import ExecutionConfig
from planner.schema.plan import Plan, decode, encode, read
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.best_placement import PricedPlacement
from planner.search.choose import plan_of
from planner.tracing.store import graph_for
from planner.verification.run import verify
from planner.verification.tiers import one_tier_down
from reshard.errors import CheckpointError

FAMILIES = ("gptj", "opt", "bloom", "gpt_neox", "gpt_neo", "gpt2", "llama", "mixtral", "t5")


def mixed_plan(checkpoint: Path, dtype: str) -> Plan:
    """A plan for one T4 that uses every tier: blocks in turn on the CPU whole, or split over all three."""
    spec = resolve(str(checkpoint))
    graph = graph_for(spec)
    way = ExecutionConfig(
        runtime="accelerate",
        label="mixed",
        main="gpu:0",
        host_copies="pinned",
        cpu_execution=True,
        streams_from=("cpu", "disk"),
    )
    workload = Workload(batch_size=2, prompt_tokens=12, new_tokens=8, dtype=dtype)
    problem = problem_of(graph, load("t4"), workload, way, RUNTIME_MODEL)
    runs_on, stored_on, turn = [], [], 0
    for unit in problem.units:
        turn += unit.unit.is_block
        if unit.unit.is_block and turn % 2 == 0:
            runs_on.append("cpu")
            stored_on.append(("cpu",) * len(unit.leaves))
        else:
            runs_on.append("gpu:0")
            places = [("gpu:0", "disk", "cpu")[(turn + i) % 3] for i in range(len(unit.leaves))]
            streamable = [
                place if leaf.streamable and leaf.stored_bytes else "gpu:0"
                for place, leaf in zip(places, unit.leaves, strict=True)
            ]
            stored_on.append(tuple(streamable))
    priced = PricedPlacement(
        problem=problem,
        assignment=Assignment(runs_on=tuple(runs_on), stored_on=tuple(stored_on)),
        total_s=1.0,
        shortage_bytes={},
    )
    model = Model(name=checkpoint.name, auto_class=spec.auto_class, dtype=dtype, graph=graph)
    return plan_of(model, priced, Request.of_workload(workload, way))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_the_plain_models(family: str, tmp_path: Path) -> None:
    checkpoint = tiny.save(family, tmp_path / family, max_shard_size="200KB")
    plan = mixed_plan(checkpoint, "float32")
    graph = graph_for(resolve(str(checkpoint)))
    places = check(device_map_of(plan, graph), graph, num_gpus=1)
    assert set(places.values()) == {0, "cpu", "disk"}
    emit(plan, graph, tmp_path / "plan")
    report = verify(tmp_path / "plan", checkpoint, on="cpu", new_tokens=8, batch_size=2)
    assert report.num_streamed > 0
    assert report.script.passed, report.script
    assert report.map_alone.passed, report.map_alone
    assert report.script.num_tokens > 0


@pytest.fixture(scope="module")
def trained_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An emitted plan of the trained model."""
    folder = tmp_path_factory.mktemp("trained") / "plan"
    emit(mixed_plan(TRAINED, "float16"), graph_for(resolve(str(TRAINED))), folder)
    return folder


def test_the_trained_model_says_the_same(trained_plan: Path) -> None:
    report = verify(trained_plan, TRAINED, on="cpu", new_tokens=24, batch_size=1)
    assert report.passed
    assert report.script.num_tokens == 24


def test_a_script_that_generates_otherwise_fails_verification(trained_plan: Path, tmp_path: Path) -> None:
    """A check that cannot fail proves nothing: spoil one logit and verification must say so."""
    folder = tmp_path / "plan"
    plan = read(trained_plan)
    emit(plan, graph_for(resolve(str(TRAINED))), folder)
    script = folder / "generation.py"
    text = script.read_text()
    script.write_text(text.replace("return scores", "scores[:, 0] += 100.0\n        return scores"))
    # As planned needs a GPU, so the broken script runs where the tiers are already the CPU's.
    down = one_tier_down(plan)
    (folder / "plan.json").write_bytes(encode(down))
    graph = graph_for(resolve(str(TRAINED)))
    (folder / "device_map.json").write_text(json.dumps(device_map_of(down, graph)))
    report = verify(folder, TRAINED, on=None, new_tokens=4, batch_size=1)
    assert not report.passed
    assert not report.script.tokens_equal
    assert report.map_alone.passed


@pytest.mark.parametrize(
    "end, words",
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("sys.exit('gave up')", "failed with status 1: gave up"),
    ],
)
def test_a_child_that_fails_is_reported_and_leaves_nothing(
    trained_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, words: str
) -> None:
    folder, temporary = tmp_path / "plan", tmp_path / "temporary"
    temporary.mkdir()
    plan = one_tier_down(read(trained_plan))
    emit(plan, graph_for(resolve(str(TRAINED))), folder)
    script = "import os, sys, tempfile\ntempfile.mkdtemp(prefix='offload-')\n" + end
    (folder / "generate.py").write_text(script)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    with pytest.raises(RuntimeFailure, match=f"the emitted plan (was )?{words}"):
        verify(folder, TRAINED, on=None, new_tokens=2, batch_size=1)
    assert not list(temporary.iterdir())


def test_a_plan_survives_a_round_trip(trained_plan: Path) -> None:
    plan = read(trained_plan)
    assert decode(encode(plan)) == plan


def test_another_models_checkpoint_is_refused(trained_plan: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not the model that was planned"):
        verify(trained_plan, tiny.save("opt", tmp_path / "opt"), on="cpu", new_tokens=2, batch_size=1)


@pytest.mark.parametrize("is_missing", [True, False])
def test_tensors_that_differ_from_the_configuration_are_refused(
    trained_plan: Path, tmp_path: Path, is_missing: bool
) -> None:
    name = "transformer.h.1.mlp.fc_in.weight"
    weights = load_file(TRAINED / "model.safetensors")
    weights |= {name: weights[name][:-1].copy()}
    if is_missing:
        del weights[name]
    (tmp_path / "config.json").write_bytes((TRAINED / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=name):
        verify(trained_plan, tmp_path, on="cpu", new_tokens=2, batch_size=1)


def test_damaged_checkpoints_are_refused_before_loading(trained_plan: Path, tmp_path: Path) -> None:
    whole = (TRAINED / "model.safetensors").read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:4], b"\xff" * 64, whole + b"more"):
        folder = tmp_path / str(len(damage))
        folder.mkdir()
        (folder / "config.json").write_bytes((TRAINED / "config.json").read_bytes())
        (folder / "model.safetensors").write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            verify(trained_plan, folder, on="cpu", new_tokens=2, batch_size=1)


def test_a_missing_shard_and_an_index_that_leaves_its_folder(trained_plan: Path, tmp_path: Path) -> None:
    for number, target in enumerate(("absent.safetensors", "../model.safetensors")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_bytes((TRAINED / "config.json").read_bytes())
        index = {"metadata": {}, "weight_map": {"lm_head.weight": target}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=r"absent|outside its folder"):
            verify(trained_plan, folder, on="cpu", new_tokens=2, batch_size=1)


def test_corrupt_plans_are_refused(trained_plan: Path, tmp_path: Path) -> None:
    payload = (trained_plan / "plan.json").read_bytes()
    fields = msgspec.json.decode(payload)
    damaged = (
        payload[:100],
        b"",
        b"[]",
        msgspec.json.encode({**fields, "schema_version": 99}),
        msgspec.json.encode({**fields, "surprise": 1}),
    )
    for number, content in enumerate(damaged):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "plan.json").write_bytes(content)
        with pytest.raises(PlanFileError):
            verify(folder, TRAINED, on="cpu", new_tokens=2, batch_size=1)
    with pytest.raises(PlanFileError):
        verify(tmp_path / "nowhere", TRAINED, on="cpu", new_tokens=2, batch_size=1)


def test_a_folder_that_is_no_plan_is_left_alone(trained_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    graph = graph_for(resolve(str(TRAINED)))
    with pytest.raises(InvalidInputError, match="exists and is no plan"):
        emit(read(trained_plan), graph, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"transformer.h.9": "cpu"}, "transformer.h.9"),
        ({"transformer.wte": None}, "transformer.wte"),
        ({"lm_head": 7}, "GPU 7"),
    ],
)
def test_predict_refuses_a_map_that_does_not_describe_the_model(
    trained_plan: Path, tmp_path: Path, change: dict[str, str | int | None], words: str
) -> None:
    device_map = json.loads((trained_plan / "device_map.json").read_text()) | change
    file = tmp_path / "map.json"
    file.write_text(json.dumps({k: v for k, v in device_map.items() if v is not None}))
    command = [sys.executable, "-m", "cli", "predict", "--hardware", "t4", "--model", str(TRAINED)]
    done = subprocess.run([*command, "--device-map", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert words in done.stderr
    assert "Traceback" not in done.stderr
