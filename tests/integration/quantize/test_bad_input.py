"""Bad input ends with status 3 and one sentence that names what is wrong, and leaves nothing behind."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cli.program import run_program
from cli.quantize import command
from tests.integration.reshard.variants import load

from .making import save

NAME = "model.layers.1.mlp.down_proj.weight"
FORMATS = {
    "compressed-tensors": ["--group-size", "32"],
    "w8a8": ["--group-size", "row", "--activations"],
    "bitsandbytes": ["--format", "bitsandbytes"],
    "moq": ["--scheme", "moq", "--groups", "8"],
    "rows": ["--scheme", "rows"],
    "zero-inference": ["--scheme", "zero-inference", "--group-size", "32"],
}


class Quantize:
    """The command in this process."""

    def __init__(self, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.work, self.capsys = work, capsys

    def __call__(self, *arguments: object) -> int:
        """Quantize the folder `model` into `out`; the status."""
        words = [self.work / "model", "--output", self.work / "out", "--memory", "4GiB", *arguments]
        return run_program(command, "quantize", list(map(str, words)))

    def refused(self, *arguments: object) -> str:
        """The one sentence; everything is as it was."""
        before = sorted(p.name for p in self.work.iterdir())
        # What libraries said while the test prepared its checkpoint.
        self.capsys.readouterr()
        status = self(*arguments)
        told = self.capsys.readouterr()
        assert status == 3, told.err
        assert told.out == ""
        assert told.err.startswith("quantize: ")
        assert told.err.count("\n") == 1
        assert sorted(p.name for p in self.work.iterdir()) == before
        return told.err


@pytest.fixture
def quantize(work: Path, capsys: pytest.CaptureFixture[str]) -> Quantize:
    return Quantize(work, capsys)


def spoil(work: Path, value: float, dtype: torch.dtype = torch.float32) -> None:
    """A checkpoint with a number in it that is none."""
    tensors = save("llama", work / "model", dtype)
    tensors[NAME][5, 9] = value
    save_file(tensors, work / "model" / "model.safetensors")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_that_is_no_number_is_named(name: str, value: float, work: Path, quantize: Quantize) -> None:
    spoil(work, value)
    sentence = quantize.refused(*FORMATS[name])
    assert f"{NAME} is NaN or infinite at [5, 9]" in sentence
    assert "--allow-nonfinite" in sentence


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_other_dtypes_too(dtype: torch.dtype, work: Path, quantize: Quantize) -> None:
    spoil(work, math.inf, dtype)
    assert f"{NAME} is NaN or infinite at [5, 9]" in quantize.refused("--group-size", 32)


@pytest.mark.parametrize("name", FORMATS)
def test_such_weights_are_zeros_where_that_is_allowed(name: str, work: Path, quantize: Quantize) -> None:
    spoil(work, math.nan)
    assert quantize(*FORMATS[name], "--allow-nonfinite") == 0
    found = load(work / "out")
    (work / "out").rename(work / "allowed")
    tensors = load(work / "model")
    tensors[NAME][5, 9] = 0
    save_file(tensors, work / "model" / "model.safetensors")
    assert quantize(*FORMATS[name]) == 0
    zero = load(work / "out")
    assert set(found) == set(zero)
    assert all(torch.equal(found[n], zero[n]) for n in zero)


def test_tensors_that_stay_may_hold_anything(work: Path, quantize: Quantize) -> None:
    tensors = save("llama", work / "model")
    tensors["model.embed_tokens.weight"][0, 0] = math.inf
    save_file(tensors, work / "model" / "model.safetensors")
    assert quantize("--group-size", 32) == 0
    assert torch.equal(load(work / "out")["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])


def test_nothing_is_quantized_twice(work: Path, quantize: Quantize) -> None:
    save("llama", work / "model")
    assert quantize("--group-size", 32) == 0
    (work / "model").rename(work / "original")
    (work / "out").rename(work / "model")
    quantize.capsys.readouterr()
    sentence = quantize.refused("--group-size", 32)
    assert "is quantized already, with compressed-tensors" in sentence
    assert "--dequantize" in sentence


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["96 columns", "groups of 128 do not divide", "--group-size 32, 16, 8 would"]),
        (["--group-size", "48"], ["64 columns", "groups of 48 do not divide"]),
        (["--group-size", "32", "--include", "*.nowhere"], ["'*.nowhere' matches no tensor"]),
        (["--group-size", "32", "--exclude", "layers.0"], ["'layers.0' matches no tensor"]),
        (["--group-size", "32", "--activations"], ["--group-size row"]),
        (["--group-size", "row", "--bits", "4", "--activations"], ["W8A8 is 8 bits"]),
        (["--scheme", "rows", "--bits", "4"], ["4 bits are packed by compressed-tensors"]),
        (["--scheme", "moq", "--groups", "9999"], ["model.layers.0", "9999 groups"]),
        (["--scheme", "zero-inference", "--group-size", "48"], ["model.layers.0", "groups of 48"]),
        (["--group-size", "32", "--exclude", "*"], ["has nothing to quantize", "excluded"]),
        (["--dequantize", "float16"], ["is not quantized"]),
    ],
)
def test_what_makes_no_sense(arguments: list[str], words: list[str], work: Path, quantize: Quantize) -> None:
    save("llama", work / "model")
    sentence = quantize.refused(*arguments)
    assert all(word in sentence for word in words), sentence


def test_a_checkpoint_without_linears(work: Path, quantize: Quantize) -> None:
    save("gpt2", work / "model")
    sentence = quantize.refused("--group-size", 32)
    assert "has nothing to quantize; a Conv1D, stored [in, out]" in sentence


def test_an_unknown_family(work: Path, quantize: Quantize) -> None:
    save("llama", work / "model")
    path = work / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "nobody", "architectures": []}))
    assert "nobody" in quantize.refused("--group-size", 32)


def test_a_tensor_that_the_table_does_not_mention(work: Path, quantize: Quantize) -> None:
    tensors = save("llama", work / "model")
    save_file(
        tensors | {"model.layers.0.extra.weight": torch.ones(8, 8)}, work / "model" / "model.safetensors"
    )
    assert "model.layers.0.extra" in quantize.refused("--group-size", 32)


def test_no_checkpoint_at_all(work: Path, quantize: Quantize) -> None:
    (work / "model").mkdir()
    assert str(work / "model") in quantize.refused()
