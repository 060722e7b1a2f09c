"""What an emitted script says where it cannot run: one sentence, the right status, no traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures import tiny
from fixtures.plans import plan_with
from fixtures.train import TRAINED
from planner.hardware.load import load
from planner.runtimes.registry import LAWS, emit
from planner.workload import Workload

#: Runtime → a machine with the GPUs that its plan is for.
MACHINES = {"accelerate": "t4", "zero-inference": "2xt4", "deepspeed-tp": "2xt4", "cpu": "cpu-16c-64g"}


def planned(runtime: str, folder: Path) -> Path:
    """The emitted folder of the trained model, on as many GPUs as the machine has."""
    profile, law = load(MACHINES[runtime]), LAWS[runtime]
    settings = next(way for way in law.settings(profile) if way.num_ranks == max(1, profile.num_gpus))
    workload = Workload(batch_size=1, prompt_tokens=8, new_tokens=4, dtype="float32")
    plan, graph = plan_with(str(TRAINED), profile, law, settings, workload)
    emit(plan, graph, folder)
    return folder


def sentence(folder: Path, checkpoint: Path | str) -> tuple[int, str]:
    """The status of generate.py on a machine without GPUs and off the net, and its last words."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(folder / "generate.py"), str(checkpoint), "--prompt", "a"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("runtime", ["accelerate", "zero-inference", "deepspeed-tp"])
def test_a_machine_without_the_gpus_is_told_so(runtime: str, tmp_path: Path) -> None:
    status, words = sentence(planned(runtime, tmp_path / "plan"), TRAINED)
    needed = "1 GPU" if MACHINES[runtime] == "t4" else "2 GPUs"
    assert (status, words) == (4, f"generate.py: the plan needs {needed}, and 0 can be seen here")


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that runs here."""
    return planned("cpu", tmp_path_factory.mktemp("refusals") / "plan")


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_a_checkpoint_of_another_model_is_told_apart(family: str, on_cpu: Path, tmp_path: Path) -> None:
    status, words = sentence(on_cpu, tiny.save(family, tmp_path / family))
    assert status == 3
    assert "and the plan is of trained, a GPTJForCausalLM of 594,952 parameters" in words


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100_000)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_model_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(
    "damage, words",
    [
        (truncated, "not fully covered"),
        (without_weights, "no file named model.safetensors"),
        (without_model_type, "model_type"),
        (shutil.rmtree, "cannot load"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_named(
    damage: Callable[[Path], None], words: str, on_cpu: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(TRAINED, folder)
    damage(folder)
    status, found = sentence(on_cpu, folder)
    assert status == 3
    assert str(folder) in found
    assert words in found
