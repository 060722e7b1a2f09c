"""bitsandbytes' int8: the bytes that transformers itself saves, and a model that loads on a CPU."""

from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig

from quantize.errors import QuantizeError
from quantize.formats.bitsandbytes import output
from reshard.errors import UnsupportedTargetError
from tests.integration.reshard.variants import assert_equal, load

from .making import chosen, generated, load_model, logits, make, save

# The library's own import, and what it does to inputs that are not float16.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning"),
]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_files_are_those_that_transformers_saves(family: str, work: Path) -> None:
    """Plain tensors too: float16, which the library makes of everything."""
    save(family, work / "model", torch.float16)
    make(work / "model", work / "out", output())
    settings = BitsAndBytesConfig(load_in_8bit=True)
    theirs = load_model(work / "model", quantization_config=settings, dtype=torch.float16)
    theirs.save_pretrained(work / "theirs")
    assert_equal(load(work / "out"), load(work / "theirs"))
    ours = load_model(work / "out")
    assert torch.equal(logits(ours), logits(theirs))
    assert generated(ours) == generated(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_it_loads_in_every_dtype(dtype: torch.dtype, work: Path) -> None:
    """Its codes are those of the library's own function, on weights that it casts to float16."""
    from bitsandbytes.functional import int8_vectorwise_quant

    tensors = save("llama", work / "model", dtype)
    make(work / "model", work / "out", output())
    found = load(work / "out")
    for name in chosen(work / "model"):
        codes, scales, _ = int8_vectorwise_quant(tensors[name].half())
        assert torch.equal(found[name], codes)
        assert torch.equal(found[name.replace(".weight", ".SCB")], scales)
    model = load_model(work / "out", dtype=dtype)
    plain = logits(load_model(work / "model", dtype=dtype))
    # Eight bits of weights and of activations: a tenth of what logits vary by.
    assert (logits(model) - plain).abs().max() < 0.3 * plain.std()
    assert len(generated(model)) > 8


def test_a_weight_beyond_float16_is_refused(work: Path) -> None:
    from safetensors.torch import save_file

    tensors = save("llama", work / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = 1e5
    save_file(tensors, work / "model" / "model.safetensors")
    with pytest.raises(QuantizeError, match=r"layers\.1\.mlp\.up_proj\.weight.*65504"):
        make(work / "model", work / "out", output())
    assert {p.name for p in work.iterdir()} == {"model"}


def test_experts_stay_and_the_rest_loads(work: Path) -> None:
    save("mixtral", work / "model")
    with pytest.raises(
        UnsupportedTargetError, match=r"transformers stacks experts.*exclude='\*\.experts\.\*'"
    ):
        make(work / "model", work / "out", output())
    make(work / "model", work / "out", output(), exclude=("*.experts.*",))
    found, plain = (logits(load_model(work / name)) for name in ("out", "model"))
    assert not torch.equal(found, plain)
    assert (found - plain).abs().max() < 0.3 * plain.std()


def test_linears_of_another_class_are_refused(work: Path) -> None:
    save("falcon-grouped", work / "model")
    with pytest.raises(UnsupportedTargetError, match="replaces no Linear of falcon"):
        make(work / "model", work / "out", output())
    assert {p.name for p in work.iterdir()} == {"model"}
