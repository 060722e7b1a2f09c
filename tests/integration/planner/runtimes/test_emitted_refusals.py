"""What an emitted script says where it cannot run: one sentence, the right status, no traceback."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures import tiny
from fixtures.plans import plan_with
from fixtures.train import TRAINED
from planner.emission import emit
from planner.errors import RuntimeFailure
from planner.hardware.load import load
from planner.runtimes.registry import RUNTIME_MODELS
from planner.schema.plan import encode, read
from planner.schema.workload import Workload
from planner.verification.tiers import one_tier_down

#: Runtime → a machine with the GPUs that its plan is for.
MACHINES = {"accelerate": "t4", "zero-inference": "2xt4", "deepspeed-tp": "2xt4", "cpu": "cpu-16c-64g"}


def planned(runtime: str, folder: Path) -> Path:
    """The emitted folder of the trained model, on as many GPUs as the machine has."""
    profile, runtime_model = load(MACHINES[runtime]), RUNTIME_MODELS[runtime]
    settings = next(
        way for way in runtime_model.configurations(profile) if way.num_ranks == max(1, profile.num_gpus)
    )
    workload = Workload(batch_size=1, prompt_tokens=8, new_tokens=4, dtype="float32")
    plan, graph = plan_with(str(TRAINED), profile, runtime_model, settings, workload)
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


def test_ranks_that_are_ended_leave_nothing_behind(tmp_path: Path) -> None:
    """Neither processes nor what they put on the disk: the swap files of a large model fill it."""
    folder, offload = planned("deepspeed-tp", tmp_path / "plan"), tmp_path / "offload"
    offload.mkdir()
    (folder / "plan.json").write_bytes(encode(one_tier_down(read(folder))))
    # Ranks that have put something there, and wait.
    (folder / "generate.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from generation import main\n\n\n"
        "def load(checkpoint, offload_folder):\n"
        "    (Path(offload_folder) / 'weights').write_text('0')\n"
        "    time.sleep(600)\n\n\n"
        "main(load, None)\n"
    )
    argv = [sys.executable, str(folder / "generate.py"), str(TRAINED), "--offload-folder", str(offload)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        while len(list(offload.rglob("weights"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=120)
    assert process.returncode == 130
    assert words.strip().splitlines()[-1] == "generate.py: ended by SIGINT"
    assert "Traceback" not in words
    assert not list(offload.iterdir())


def test_a_folder_that_cannot_be_written_is_named_and_not_left_half_there(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RuntimeFailure, match=f"cannot write the plan to {tmp_path}/plan: File too large"):
            planned("cpu", tmp_path / "plan")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
