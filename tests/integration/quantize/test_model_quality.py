"""Perplexity and logits of quantized models, run in real child processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from fixtures import tiny
from fixtures.perplexity import HELD_OUT, perplexity
from fixtures.train import TRAINED
from quantize.errors import EvaluationError, GroupSizeError, QuantizeError
from quantize.formats import bitsandbytes, compressed_tensors, plain
from quantize.formats.base import Output
from quantize.quality.model import ModelErrors, model_errors
from quantize.scheme import Groups, Moq, Rows, Scheme, ZeroInference
from reshard.errors import CheckpointError, MissingFileError, UnsupportedSourceError

from .checkpoints import quantized_copy, tensors_of, wide_model

#: Of the held-out text: enough to tell damage from rounding, and done in seconds.
_TOKENS = 700


def _model(quantized: Path | Output | Scheme, text: Path = HELD_OUT, **options: Any) -> ModelErrors:
    settings: dict[str, Any] = {"window_tokens": 256, "max_tokens": _TOKENS, "jobs": 1} | options
    return model_errors(settings.pop("checkpoint", TRAINED), quantized, text, **settings)


@pytest.fixture(scope="module")
def plain_perplexity() -> float:
    model = AutoModelForCausalLM.from_pretrained(TRAINED, dtype=torch.float32).eval()
    return perplexity(model, HELD_OUT.read_bytes()[:_TOKENS])


def test_the_plain_model_compared_with_itself_has_no_error(plain_perplexity: float) -> None:
    found = _model(TRAINED)
    assert found.num_tokens == _TOKENS
    assert found.plain.perplexity == pytest.approx(plain_perplexity, rel=1e-5)
    assert found.perplexity_increase == pytest.approx(0.0, abs=1e-6)
    assert found.logits_relative_error < 1e-6
    assert found.kl_divergence_nats == pytest.approx(0.0, abs=1e-9)
    assert found.top1_agreement > 0.999


@pytest.mark.parametrize(
    "output",
    [Moq(), Rows(), Groups(), ZeroInference(), compressed_tensors.output(), bitsandbytes.output()],
    ids=["moq", "rows", "groups", "zero-inference", "compressed-tensors", "bitsandbytes"],
)
def test_w8a16_costs_almost_nothing(output: Output | Scheme) -> None:
    found = _model(output)
    assert abs(found.perplexity_increase) < 0.05
    assert 1e-4 < found.logits_relative_error < 0.02
    assert 0 < found.kl_divergence_nats < 1e-3
    assert found.top1_agreement > 0.97


def test_decoded_weights_predict_what_the_loaded_files_predict(tmp_path: Path) -> None:
    output = compressed_tensors.output(bits=4)
    decoded, loaded = _model(output), _model(quantized_copy(tmp_path / "out", output))
    assert "decoded" in decoded.runs
    assert "as transformers loads it" in loaded.runs
    # The one rounds decoded weights to float16, the other to float32; next to 4 bits that is nothing.
    assert decoded.quantized.perplexity == pytest.approx(loaded.quantized.perplexity, rel=1e-3)
    assert decoded.logits_relative_error == pytest.approx(loaded.logits_relative_error, rel=0.02)
    assert decoded.logits_relative_error > 0.02


def test_bitsandbytes_files_run_with_their_quantized_activations(tmp_path: Path) -> None:
    folder = quantized_copy(tmp_path / "out", bitsandbytes.output())
    for dtype in ("float32", "float16"):
        found = _model(folder, dtype=dtype)
        assert abs(found.perplexity_increase) < 0.05
        assert 1e-3 < found.logits_relative_error < 0.03


def test_damage_is_seen(tmp_path: Path) -> None:
    """A quantizer whose scales are off by a quarter must not pass for a good one."""
    folder = quantized_copy(tmp_path / "out", compressed_tensors.output())
    file = next(folder.glob("*.safetensors"))
    tensors = {n: t * 1.25 if n.endswith("weight_scale") else t for n, t in tensors_of(folder).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    found = _model(folder)
    assert found.perplexity_increase > 0.05
    assert found.logits_relative_error > 0.05


def test_what_no_perplexity_can_be_measured_of_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("a")
    (tmp_path / "odd.txt").write_bytes(b"abc\xff")
    t5 = tiny.save("t5", tmp_path / "t5")
    bare = wide_model(tmp_path / "bare", 1)
    ours = quantized_copy(tmp_path / "ours", plain.output(Rows()))
    cases: list[tuple[Any, dict[str, Any], type[CheckpointError], str]] = [
        (Moq(), {"text": tmp_path / "short.txt"}, UnsupportedSourceError, "1 tokens; at least 2"),
        (Moq(), {"text": tmp_path / "odd.txt"}, UnsupportedSourceError, "no UTF-8 text.*byte 3"),
        (Moq(), {"text": tmp_path / "none.txt"}, MissingFileError, "none.txt is not there"),
        (Rows(), {"checkpoint": t5}, UnsupportedSourceError, "is a t5; perplexity is measured for causal"),
        (Rows(), {"checkpoint": bare}, UnsupportedSourceError, "no tokenizer"),
        (tmp_path / "none", {}, MissingFileError, "none is not there"),
        (ours, {}, UnsupportedSourceError, "plain format, which transformers does not load"),
        (tmp_path / "empty", {}, MissingFileError, "whole checkpoints"),
        (Moq(), {"window_tokens": 1}, QuantizeError, "windows of 1 tokens"),
        (Groups(group_size=96), {}, GroupSizeError, "96"),
    ]
    for quantized, options, error, words in cases:
        with pytest.raises(error, match=words):
            _model(quantized, scratch=tmp_path, **options)
    assert not list(tmp_path.glob("quality-*"))


def test_a_model_that_does_not_run_is_a_sentence(tmp_path: Path) -> None:
    folder = quantized_copy(tmp_path / "out", compressed_tensors.output())
    next(folder.glob("*.safetensors")).write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match=r"the quantized model failed with status 1: .+"):
        _model(folder)
