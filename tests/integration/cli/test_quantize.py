"""The `quantize` command: what it writes, what it says, and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.program import run_program
from cli.quantize import command
from planner.models.resolve import resolve
from planner.runtimes.zero_inference.quantization import weight_quantization
from planner.tracing.store import graph_for
from tests.integration.reshard.children import contents
from tests.integration.reshard.variants import load

from .conftest import Ran


class Program:
    """Runs the command in this process, with room for what the process has loaded already."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Ran:
        self.capsys.readouterr()
        words = [*map(str, arguments)]
        if "--memory" not in words:
            words += ["--memory", "4GiB"]
        status = run_program(command, "quantize", words)
        return Ran(status, *self.capsys.readouterr())


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


def test_help_names_every_option_and_imports_nothing_heavy(repository: Path) -> None:
    code = (
        "import sys\nfrom cli.program import run_program\nfrom cli.quantize import command\n"
        "status = run_program(command, 'quantize', ['--help'])\n"
        "heavy = [m for m in ('torch', 'transformers', 'numpy', 'numba', 'fsspec') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr)\n"
        "sys.exit(status)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert ran.returncode == 0
    assert ran.stderr.strip() == "[]"
    options = (
        "scheme", "format", "bits", "group-size", "groups", "mlp-extra-grouping", "activations", "tp",
        "include", "exclude", "report", "allow-nonfinite", "dequantize", "output", "memory", "jobs",
        "overwrite", "json",
    )  # fmt: skip
    for option in options:
        assert f"--{option}" in ran.stdout
    for word in ("compressed-tensors", "bitsandbytes", "safetensors", "symmetric-search", "zero-inference"):
        assert word in ran.stdout


def test_as_a_process_beside_the_checkpoint(checkpoint: Path, repository: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "cli.quantize", str(checkpoint), "--group-size", "4", "--exclude", "*.k_proj"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    for words in (
        "compressed-tensors",
        "excluded",
        "a Linear of a block",
        "the head stays",
        "Note: transformers",
    ):
        assert words in ran.stdout
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["model", "model-int8"]
    output = checkpoint.with_name("model-int8")
    assert "model.layers.0.self_attn.q_proj.weight_packed" in load(output)
    assert "model.layers.0.self_attn.k_proj.weight" in load(output)


def test_the_order_of_deepspeeds_calls_is_said(tmp_path: Path, repository: Path) -> None:
    model, output = "fixtures/trained", str(tmp_path / "ds_config.json")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "cli.quantize",
            model,
            "--format",
            "zero-inference",
            "--group-dim",
            "1",
            "--output",
            output,
        ],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    words = " ".join(ran.stdout.split())
    assert "Note: quantize before initialize" in words
    assert "the configuration without zero_optimization" in words
    assert "groups of 64 along the input are decoded by DeepSpeed's CUDA kernel" in words


def test_the_default_configuration_is_the_planners(
    checkpoint: Path, program: Program, tmp_path: Path
) -> None:
    output = tmp_path / "ds_config.json"
    ran = program(checkpoint, "--format", "zero-inference", "--output", str(output))
    assert ran.status == 0, ran.err
    assert "CUDA kernel" not in ran.out
    block = json.loads(output.read_text())["weight_quantization"]
    assert block == weight_quantization(graph_for(resolve(str(checkpoint))), 8)
    assert {setting["group_dim"] for setting in block["post_init_quant"].values()} == {0}


@pytest.mark.parametrize(
    "arguments, name, method",
    [
        (["--group-size", "4"], "model-int8", "compressed-tensors"),
        (["--group-size", "row", "--bits", "4"], "model-int4", "compressed-tensors"),
        (["--group-size", "row", "--activations"], "model-int8", "compressed-tensors"),
        (["--scheme", "symmetric", "--group-size", "2"], "model-int8", "compressed-tensors"),
        (
            ["--scheme", "symmetric", "--group-size", "2", "--format", "safetensors"],
            "model-int8",
            "offload-planner",
        ),
        (["--scheme", "moq"], "model-int8", "offload-planner"),
        (["--scheme", "moq", "--groups", "4", "--mlp-extra-grouping"], "model-int8", "offload-planner"),
        (["--scheme", "rows", "--tp", "2"], "model-int8", "offload-planner"),
        (["--scheme", "groups", "--group-size", "4"], "model-int8", "offload-planner"),
        (["--scheme", "zero-inference", "--group-size", "4"], "model-int8", "offload-planner"),
        (["--format", "bitsandbytes"], "model-int8", "bitsandbytes"),
    ],
)
def test_schemes_and_formats(
    arguments: list[str], name: str, method: str, checkpoint: Path, program: Program
) -> None:
    ran = program(checkpoint, *arguments, "--json")
    assert ran.status == 0, ran.err
    output = checkpoint.with_name(name)
    assert ran.json["report"]["output"] == str(output)
    decisions = {d["name"]: d["is_quantized"] for d in ran.json["decisions"]}
    assert set(decisions) == set(load(checkpoint))
    assert decisions["model.layers.0.mlp.down_proj.weight"]
    assert not decisions["lm_head.weight"]
    config = json.loads((output / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == method


def test_there_and_back(checkpoint: Path, program: Program) -> None:
    assert program(checkpoint, "--group-size", "4").status == 0
    ran = program(checkpoint.with_name("model-int8"), "--dequantize", "float16")
    assert ran.status == 0, ran.err
    assert "huggingface, float16" in ran.out
    found, original = load(checkpoint.with_name("model-int8-float16")), load(checkpoint)
    assert set(found) == set(original)
    for name, tensor in original.items():
        assert found[name].dtype == torch.float16
        # Half a step of 1/127, of groups whose largest weight is below 1; and float16's rounding.
        assert (found[name].float() - tensor).abs().max() < 6e-3


def test_jobs_change_nothing(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    for jobs in (1, 3):
        words = ("--group-size", 4, "--jobs", jobs, "--output", tmp_path / f"out{jobs}")
        assert program(checkpoint, *words).status == 0
    assert contents(tmp_path / "out1") == contents(tmp_path / "out3")


def test_only_an_output_of_its_own_is_overwritten(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    words = (checkpoint, "--group-size", 4, "--output", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        ran = program(*words, *more)
        assert ran.status == 3
        assert "thesis.txt" in ran.err or str(tmp_path / "out") in ran.err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    (tmp_path / "out" / "thesis.txt").unlink()
    assert program(*words).status == 0
    before = contents(tmp_path / "out")
    assert program(*words).status == 3
    assert contents(tmp_path / "out") == before
    assert program(*words[:2], 2, *words[3:], "--overwrite").status == 0
    assert contents(tmp_path / "out") != before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Missing argument 'CHECKPOINT'"),
        (["--bits", "3"], "'3' is not one of"),
        (["--scheme", "gptq"], "'gptq' is not one of"),
        (["--format", "gguf"], "'gguf' is not one of"),
        (["--group-size", "many"], "'many' is neither a number of weights nor `row`"),
        (["--group-size", "0"], "'0' is neither a number of weights nor `row`"),
        (["--groups", "4"], "belong to --scheme moq"),
        (["--mlp-extra-grouping"], "belong to --scheme moq"),
        (["--scheme", "moq", "--group-size", "4"], "--group-size does not belong to --scheme moq"),
        (["--scheme", "rows", "--group-size", "4"], "--group-size does not belong to --scheme rows"),
        (["--scheme", "zero-inference", "--group-size", "row"], "needs a number of weights per group"),
        (["--scheme", "moq", "--format", "compressed-tensors"], "has no place in compressed-tensors"),
        (["--scheme", "moq", "--activations"], "--activations belongs to --format compressed-tensors"),
        (["--format", "bitsandbytes", "--bits", "4"], "has one scheme: 8 bits, one scale per row"),
        (["--format", "bitsandbytes", "--group-size", "4"], "has one scheme: 8 bits, one scale per row"),
        (["--tp", "2"], "--tp belongs to --format"),
        (["--dequantize", "int8"], "'int8' is not one of"),
        (["--quantise"], "No such option"),
    ],
)
def test_usage_errors_end_with_status_two(
    arguments: list[str], message: str, checkpoint: Path, program: Program
) -> None:
    words = [checkpoint, *arguments] if arguments else []
    ran = program(*words)
    assert ran.status == 2
    assert message in ran.err
    assert ran.out == ""
    told = program(*words, "--json")
    assert told.json["error"]["exit_code"] == 2
    assert message in told.json["error"]["message"]
    assert [p.name for p in checkpoint.parent.iterdir()] == ["model"]


def test_bad_input_is_an_object_with_json(tmp_path: Path, program: Program) -> None:
    ran = program(tmp_path / "nowhere", "--json")
    assert ran.status == 3
    assert ran.json["error"]["exit_code"] == 3
    assert str(tmp_path / "nowhere") in ran.json["error"]["message"]
