"""What kernel injection's script refuses before DeepSpeed would be silently wrong, in processes of its own.

The kernels themselves run in `tests/benchmarks/kernel_injection_plan_gpu.py`; all that comes before needs no
GPU and no old transformers.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fixtures import tiny
from fixtures.plans import plan_with
from planner.hardware.load import load
from planner.runtimes.folder import write_folder
from planner.runtimes.kernel_injection.emit import emit
from planner.runtimes.kernel_injection.model import RUNTIME_MODEL
from planner.schema.workload import Workload
from reshard.job import Request
from reshard.run import reshard

WORKLOAD = Workload(batch_size=2, prompt_tokens=10, new_tokens=6, dtype="float16")
PROFILE = load("2xa100-80g")
NUM_RANKS = 2


def write_plan(checkpoint: Path, folder: Path) -> Path:
    """The folder of a plan for two ranks."""
    way = next(one for one in RUNTIME_MODEL.configurations(PROFILE) if one.num_ranks == NUM_RANKS)
    plan, graph = plan_with(str(checkpoint), PROFILE, RUNTIME_MODEL, way, WORKLOAD)
    write_folder(plan, emit(plan, graph), folder)
    return folder


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny BLOOM and its plan."""
    folder = tmp_path_factory.mktemp("bloom")
    checkpoint = tiny.save("bloom", folder / "hf")
    return checkpoint, write_plan(checkpoint, folder / "plan")


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny OPT and its plan."""
    folder = tmp_path_factory.mktemp("opt")
    checkpoint = tiny.save("opt", folder / "hf")
    return checkpoint, write_plan(checkpoint, folder / "plan")


@pytest.fixture(scope="module")
def shards(bloom: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-shards of the BLOOM."""
    output = tmp_path_factory.mktemp("shards") / "tp2"
    target: dict[str, Any] = {"degrees": (NUM_RANKS,), "format": "deepspeed", "dtype": "float16"}
    reshard(Request(source=str(bloom[0]), output=output, **target))
    return output


def run(plan: Path, code: str) -> tuple[int, str, str]:
    """Status, output and last words of a process that has imported the script of a plan."""
    program = (
        f"import sys; sys.path.insert(0, {str(plan)!r})\nimport generate\nfrom pathlib import Path\n{code}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("generate.py: ")]
    return done.returncode, done.stdout.strip(), said[-1] if said else done.stderr[-2000:]


def refused(plan: Path, code: str, sentence: str, status: int = 3) -> None:
    """The process ends with the status, and says the sentence."""
    found, _, said = run(plan, code)
    assert sentence in said
    assert found == status


def test_a_newer_transformers_is_said_first(bloom: tuple[Path, Path]) -> None:
    sentence = f"transformers {transformers.__version__} is installed, and DeepSpeed's blocks are compatible"
    refused(bloom[1], "generate.load('x', 'y')", sentence, status=4)


def test_without_cuda_there_are_no_kernels(bloom: tuple[Path, Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    code = "generate.transformers.__version__ = '4.43.4'\ngenerate.load('x', 'y')"
    refused(bloom[1], code, "need CUDA, which is not available", status=4)


def test_configurations_that_the_blocks_compute(bloom: tuple[Path, Path], opt: tuple[Path, Path]) -> None:
    for checkpoint, plan in (bloom, opt):
        status, said, why = run(plan, f"print(generate.configuration({str(checkpoint)!r}).model_type)")
        assert (status, said) == (0, checkpoint.parent.name.rstrip("0123456789")), why


def test_another_family_is_another_plans(bloom: tuple[Path, Path], opt: tuple[Path, Path]) -> None:
    code = f"generate.configuration({str(opt[0])!r})"
    refused(bloom[1], code, "is a opt; the plan is for a bloom")


def _with_config(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """A folder with the configuration alone, changed."""
    config = json.loads((checkpoint / "config.json").read_text())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_setting_that_the_block_ignores(opt: tuple[Path, Path], tmp_path: Path) -> None:
    folder = _with_config(opt[0], tmp_path / "post", do_layer_norm_before=False)
    sentence = "ignores do_layer_norm_before = false and computes true"
    refused(opt[1], f"generate.configuration({str(folder)!r})", sentence)


def test_rotary_angles_of_another_base_are_no_graphs_business(tmp_path: Path) -> None:
    checkpoint = tiny.save("gpt_neox", tmp_path / "hf")
    plan = write_plan(checkpoint, tmp_path / "plan")
    config = json.loads((checkpoint / "config.json").read_text())
    rope = config["rope_parameters"] | {"rope_theta": 500.0}
    folder = _with_config(checkpoint, tmp_path / "base", rope_parameters=rope)
    refused(plan, f"generate.configuration({str(folder)!r})", "ignores rotary_emb_base = 500.0")
    code = f"print(generate.configuration({str(checkpoint)!r}).rotary_emb_base)"
    assert float(run(plan, code)[1]) == 10000


def test_which_kinds_of_checkpoint_deepspeed_reads_itself(
    bloom: tuple[Path, Path], opt: tuple[Path, Path], shards: Path, tmp_path: Path
) -> None:
    assert run(bloom[1], f"print(generate.index_of(Path({str(bloom[0])!r})))")[1] == "None"
    assert run(bloom[1], "print(generate.index_of(Path('bigscience/bloom')))")[1] == "None"
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"")
    code = f"import json; print(json.dumps(generate.index_of(Path({str(tmp_path)!r}))))"
    assert json.loads(run(bloom[1], code)[1]) == {
        "type": "ds_model",
        "checkpoints": ["pytorch_model-00001-of-00001.bin"],
        "version": 1.0,
        "parallelization": "pp",
        "base_dir": str(tmp_path),
    }
    assert run(opt[1], code)[1] == "null"
    code = f"import json; print(json.dumps(generate.index_of(Path({str(shards)!r}))))"
    found = json.loads(run(bloom[1], code)[1])
    assert (found["tp_size"], found["base_dir"]) == (NUM_RANKS, str(shards))


@pytest.mark.parametrize(
    "index, sentence",
    [
        (
            {"type": "Megatron", "checkpoints": ["a"], "version": 0},
            "is of type Megatron, for which DeepSpeed 0.19.8",
        ),
        (
            {"type": "ds_model", "checkpoints": ["a"]},
            "lists whole archives, which DeepSpeed cuts wrongly",
        ),
        (
            {"type": "ds_model", "checkpoints": {"tp": []}, "tp_size": 4},
            "is cut for 4 ranks, and the plan has 2",
        ),
        (
            {"type": "ds_model", "checkpoints": {"tp": []}, "tp_size": 2, "dtype": "float32"},
            "is written in float32, and the plan is in float16",
        ),
    ],
)
def test_indexes_that_deepspeed_would_misread(
    opt: tuple[Path, Path], tmp_path: Path, index: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "ds_inference_config.json").write_text(json.dumps(index))
    refused(opt[1], f"generate.index_of(Path({str(tmp_path)!r}))", sentence)


def test_megatrons_folder_is_to_be_cut_first(bloom: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "iter_0000001" / "mp_rank_00").mkdir(parents=True)
    code = f"generate.index_of(Path({str(tmp_path)!r}))"
    refused(bloom[1], code, "cut it with: reshard CHECKPOINT --tp 2 --format deepspeed --dtype float16")


NAMES = """
folder = Path({folder!r})
index = generate.index_of(folder)
stored = generate.stored_names(index) - {without!r}
config = generate.configuration(str(folder))
model = generate.without_weights(str(folder), config)
print(len(stored))
"""


def test_pre_shards_are_looked_through_before_deepspeed_is(bloom: tuple[Path, Path], shards: Path) -> None:
    status, said, why = run(bloom[1], NAMES.format(folder=str(shards), without=set()))
    assert status == 0, why
    assert int(said) > 20


def test_a_shard_that_is_not_there(bloom: tuple[Path, Path], shards: Path, tmp_path: Path) -> None:
    index = json.loads((shards / "ds_inference_config.json").read_text())
    (tmp_path / "ds_inference_config.json").write_text(json.dumps(index))
    code = f"generate.stored_names(generate.index_of(Path({str(tmp_path)!r})))"
    refused(bloom[1], code, "is not there; cut it with")


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_a_pickle_with_a_payload_is_not_run(bloom: tuple[Path, Path], tmp_path: Path) -> None:
    index = {"type": "ds_model", "checkpoints": {"tp": ["a.pt", "b.pt"]}, "tp_size": 2}
    (tmp_path / "ds_inference_config.json").write_text(json.dumps(index))
    torch.save({"weight": _Payload(tmp_path / "ran")}, tmp_path / "a.pt")
    code = f"generate.stored_names(generate.index_of(Path({str(tmp_path)!r})))"
    refused(bloom[1], code, "a.pt is no archive of plain tensors")
    (tmp_path / "a.pt").write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    refused(bloom[1], code, "a.pt is no archive of plain tensors")
    assert not (tmp_path / "ran").exists()


WHOLE = """
config = generate.configuration({checkpoint!r})
model = generate.without_weights({checkpoint!r}, config)
names = set(model.state_dict())
generate.check_names(model, names - {{"lm_head.weight"}}, "folder")
generate.check_names(model, {{name.partition(".")[2] for name in names}}, "folder")
print("all there")
generate.check_names(model, names - {{"transformer.h.0.mlp.dense_h_to_4h.bias"}}, "folder")
"""


def test_a_tensor_that_is_missing_is_named(bloom: tuple[Path, Path]) -> None:
    """A tied head is not, nor are BLOOM's archives, which leave the model's prefix away."""
    code = WHOLE.format(checkpoint=str(bloom[0]))
    status, said, why = run(bloom[1], code)
    assert said == "all there"
    assert "folder lacks transformer.h.0.mlp.dense_h_to_4h.bias (1 in all)" in why
    assert status == 3
