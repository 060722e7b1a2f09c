"""Tensor-parallel plans through their emitted folders: real ranks, and the plain model's tokens.

Every family, degree and source is in `tests/benchmarks/tensor_parallel.py`; here are those
that differ in kind.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
from deepspeed.inference.config import DeepSpeedInferenceConfig

from planner.errors import InvalidInputError, ModelError
from planner.runtimes.deepspeed_tp.emit import CONFIG_FILE
from planner.verification.children import run_child
from planner.verification.run import VerifyReport, verify
from tests.integration.tensor_parallel_cases import cut, save, written

TIMEOUT_S = 240


def proved(folder: Path, checkpoint: Path, shards: Path | None = None) -> VerifyReport:
    report = verify(
        folder, checkpoint, on=None, new_tokens=6, batch_size=2, shards=shards, timeout_s=TIMEOUT_S
    )
    assert report.passed, report
    assert report.map_alone is None
    assert report.script.num_tokens > 0
    return report


@pytest.mark.parametrize(
    "family, runtime, num_ranks, is_cut",
    [
        ("gptj", "deepspeed-tp", 2, False),
        ("bloom", "deepspeed-tp", 4, True),  # slopes of ALiBi, and a head tied to its embedding
        ("llama", "transformers-tp", 2, False),
        ("gpt_neox", "transformers-tp", 2, True),  # names that differ from the model's
    ],
)
def test_ranks_generate_what_the_plain_model_does(
    family: str, runtime: str, num_ranks: int, is_cut: bool, tmp_path: Path
) -> None:
    checkpoint = save(family, tmp_path / family)
    folder = written(checkpoint, runtime, num_ranks, tmp_path / "plan")
    shards = cut(checkpoint, runtime, num_ranks, tmp_path / "shards") if is_cut else None
    assert proved(folder, checkpoint, shards).num_ranks == num_ranks


def test_a_policy_derived_from_the_graph_makes_deepspeed_cut_right(tmp_path: Path) -> None:
    checkpoint = save("t5", tmp_path / "t5")
    folder = written(checkpoint, "deepspeed-tp", 2, tmp_path / "plan", explicit=True)
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config["injection_policy"] == {
        "T5Block": ["SelfAttention.o", "DenseReluDense.wo", "EncDecAttention.o"]
    }
    # From pre-shards, because a block has an embedding in it, which DeepSpeed copies by value.
    proved(folder, checkpoint, cut(checkpoint, "deepspeed-tp", 2, tmp_path / "shards"))


def test_deepspeed_takes_the_arguments_as_they_are_written(tmp_path: Path) -> None:
    folder = written(save("opt", tmp_path / "opt"), "deepspeed-tp", 4, tmp_path / "plan")
    settings = json.loads((folder / CONFIG_FILE).read_text())
    config = DeepSpeedInferenceConfig(**settings)
    assert settings["tensor_parallel"]["tp_size"] == config.tensor_parallel.tp_size == 4
    assert str(config.dtype) == "torch.float32"
    assert not config.replace_with_kernel_inject
    assert config.injection_policy is None


@pytest.mark.parametrize(
    "runtime, spoil, words",
    [
        ("deepspeed-tp", "other degree", "is cut for 4 ranks, not 2; cut the checkpoint with: reshard"),
        ("deepspeed-tp", "missing", "lacks the shard of rank 1 of 2"),
        ("deepspeed-tp", "renamed", "says that it is of rank 0 of 2, not of rank 1 of 2"),
        ("transformers-tp", "other format", "is cut for DeepSpeed, which is not what this plan runs"),
        ("transformers-tp", "renamed", "hold 128 of 64 elements of model.layers.0"),
    ],
)
def test_shards_that_do_not_fit_the_plan_are_refused(
    runtime: str, spoil: str, words: str, tmp_path: Path
) -> None:
    checkpoint = save("llama", tmp_path / "llama")
    folder = written(checkpoint, runtime, 2, tmp_path / "plan")
    other = {"deepspeed-tp": "transformers-tp", "transformers-tp": "deepspeed-tp"}
    kind = other[runtime] if spoil == "other format" else runtime
    shards = cut(checkpoint, kind, 4 if spoil == "other degree" else 2, tmp_path / "shards")
    files = sorted(shards.glob("*.safetensors"))
    if spoil == "missing":
        files[1].unlink()
    if spoil == "renamed":
        shutil.copy(files[0], files[1])
    argv = [sys.executable, str(folder / "generate.py"), str(shards), "--prompt-tokens", "4"]
    with pytest.raises(ModelError, match=words):
        run_child(argv, "the plan", tmp_path, timeout_s=TIMEOUT_S)


def test_a_folder_of_shards_that_is_none_is_refused(tmp_path: Path) -> None:
    checkpoint = save("llama", tmp_path / "llama")
    folder = written(checkpoint, "deepspeed-tp", 2, tmp_path / "plan")
    with pytest.raises(InvalidInputError, match="absent is not a folder; write the shards with `reshard`"):
        proved(folder, checkpoint, tmp_path / "absent")
