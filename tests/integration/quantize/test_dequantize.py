"""Back again: what decoding gives is what the codes mean, whoever wrote them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from quantize.formats import bitsandbytes, compressed_tensors, plain
from quantize.formats.base import Output
from quantize.groups import blocks, moq, row_absmax, rows, search, symmetric, zero_inference
from quantize.restore import dequantize
from quantize.scheme import Groups, Moq, Rows, SymmetricSearch, ZeroInference
from reshard.errors import DamagedFileError, UnsupportedSourceError
from reshard.job import Request
from tests.integration.reshard.variants import Tensors, assert_equal, load

from .making import Restore, chosen, load_model, logits, make, restored, save

#: Rows of 100, and of 99: neither 8 codes of 4 bits nor 4 of 8 fill the last word.
RAGGED = {"intermediate_size": 99}


def decode(source: Path, folder: Path, dtype: str = "float32") -> Tensors:
    """Dequantize; the tensors."""
    request = Request(
        source=str(source),
        output=folder,
        degrees=(1,),
        format="huggingface",
        memory_bytes=4 << 30,
        jobs=2,
    )
    dequantize(request, dtype)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    return load(folder)


def _flat(formula: Any, numel: int, scales: Any = np.asarray) -> Restore:
    def restore(block: blocks.Block) -> blocks.Block:
        made = formula.encode(block, group_numel=numel)
        found: blocks.Block = formula.decode(
            made.codes, scales(made.scales).reshape(-1), group_numel=numel, dtype=np.dtype(np.float32)
        )
        return found

    return restore


def _moq(block: blocks.Block) -> blocks.Block:
    return _flat(moq, block.size // 7, moq.kept)(block)


def _zero_inference(block: blocks.Block) -> blocks.Block:
    made = zero_inference.encode(block, group_size=32)
    assert made.minimum is not None
    return zero_inference.decode(made.codes, made.scales, made.minimum)


def _symmetric(formula: Any, **settings: Any) -> Restore:
    return lambda b: symmetric.decode(*formula.encode(b, **settings)[:2])


def _absmax(block: blocks.Block) -> blocks.Block:
    made = row_absmax.encode(block)
    return row_absmax.decode(made.codes, made.scales, dtype=np.dtype(np.float32))


FORMS: dict[str, tuple[Output, Restore, dict[str, Any]]] = {
    "pack-8-group": (compressed_tensors.output(group_size=32), _symmetric(search, group_size=32), {}),
    "pack-8-ragged": (
        compressed_tensors.output(group_size=None, scales="absmax"),
        _symmetric(symmetric, group_size=None),
        RAGGED,
    ),
    "pack-4-ragged": (
        compressed_tensors.output(bits=4, group_size=None),
        _symmetric(search, group_size=None, bits=4),
        RAGGED,
    ),
    "pack-4-group": (
        compressed_tensors.output(bits=4, group_size=4, scales="absmax"),
        _symmetric(symmetric, group_size=4, bits=4),
        {"intermediate_size": 100},
    ),
    "int": (
        compressed_tensors.output(group_size=None, activations=True),
        _symmetric(search, group_size=None),
        {},
    ),
    "bitsandbytes": (bitsandbytes.output(), _absmax, {}),
    "moq": (plain.output(Moq(groups=7)), _moq, {}),
    "rows": (plain.output(Rows()), lambda b: _flat(rows, b.shape[1])(b), {}),
    "groups": (plain.output(Groups(group_size=16)), _flat(rows, 16), {}),
    "search": (plain.output(SymmetricSearch(group_size=32)), _symmetric(search, group_size=32), {}),
    "zero-inference": (plain.output(ZeroInference(group_size=32)), _zero_inference, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_decodes_to_what_its_codes_mean(form: str, work: Path) -> None:
    output, restore, settings = FORMS[form]
    tensors = save("llama", work / "model", **settings)
    make(work / "model", work / "out", output)
    expected = restored(tensors, chosen(work / "model"), restore)
    assert_equal(decode(work / "out", work / "back"), expected)
    for dtype in (torch.float16, torch.bfloat16):
        word = str(dtype).removeprefix("torch.")
        cast = {name: t.to(dtype) for name, t in expected.items()}
        assert_equal(decode(work / "out", work / word, word), cast)
        assert json.loads((work / word / "config.json").read_text())["dtype"] == word
        assert load_model(work / word).dtype == dtype


@pytest.mark.parametrize("form", ["pack-8-group", "pack-4-group", "int"])
def test_what_transformers_saved_again(form: str, work: Path) -> None:
    output, restore, settings = FORMS[form]
    tensors = save("llama", work / "model", **settings)
    make(work / "model", work / "out", output)
    load_model(work / "out").save_pretrained(work / "again")
    assert_equal(decode(work / "again", work / "back"), restored(tensors, chosen(work / "model"), restore))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_bitsandbytes_made(work: Path) -> None:
    tensors = save("llama", work / "model", torch.float16)
    model = AutoModelForCausalLM.from_pretrained(
        work / "model", quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float16
    )
    model.save_pretrained(work / "theirs")
    wide = {name: t.float() for name, t in tensors.items()}
    assert_equal(decode(work / "theirs", work / "back"), restored(wide, chosen(work / "model"), _absmax))


def test_a_decoded_model_computes_what_the_coded_one_does(work: Path) -> None:
    save("gptj", work / "model")
    make(work / "model", work / "out", compressed_tensors.output(group_size=32))
    decode(work / "out", work / "back")
    assert torch.equal(logits(load_model(work / "back")), logits(load_model(work / "out")))


def rewrite(folder: Path, change: dict[str, Any], weights: dict[str, Any]) -> None:
    """Have the recipe say something else."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    recipe = config["quantization_config"]
    recipe |= change
    if weights:
        recipe["config_groups"]["group_0"]["weights"] |= weights
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, weights, message",
    [
        ({"quant_method": "gptq"}, {}, "quantized by 'gptq', which is not known"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {}, "4 bits by bitsandbytes"),
        ({"format": "float-quantized"}, {}, "format 'float-quantized'; pack-quantized and int-quantized"),
        ({}, {"symmetric": False}, "symmetric False for weights; decoded is True"),
        ({}, {"type": "float"}, "type 'float' for weights; decoded is 'int'"),
        ({}, {"num_bits": 3}, "num_bits 3 for weights; decoded is 8 or 4"),
        ({}, {"strategy": "block"}, "strategy 'block' for weights; decoded is 'channel' or 'group'"),
        ({}, {"actorder": "weight"}, "actorder 'weight' for weights; decoded is none"),
    ],
)
def test_recipes_that_are_not_known_are_refused(
    change: dict[str, Any], weights: dict[str, Any], message: str, work: Path
) -> None:
    save("llama", work / "model")
    make(work / "model", work / "out", compressed_tensors.output(group_size=32))
    rewrite(work / "out", change, weights)
    with pytest.raises(UnsupportedSourceError, match=message):
        decode(work / "out", work / "back")
    assert {p.name for p in work.iterdir()} == {"model", "out"}


def test_parameters_that_are_not_known_are_refused(work: Path) -> None:
    save("llama", work / "model")
    make(work / "model", work / "out", compressed_tensors.output(group_size=32))
    tensors = load(work / "out")
    module = "model.layers.0.self_attn.q_proj"
    file = next((work / "out").glob("*.safetensors"))
    # Files that are not as they were written are no set of this project's any more.
    (work / "out" / "reshard.json").unlink()
    order = torch.zeros(64, dtype=torch.int32)
    save_file(tensors | {f"{module}.weight_g_idx": order}, file)
    with pytest.raises(
        UnsupportedSourceError, match="how a weight_g_idx changes what codes mean is not known"
    ):
        decode(work / "out", work / "back")
    del tensors[f"{module}.weight_scale"]
    save_file(tensors, file)
    with pytest.raises(DamagedFileError, match=rf"codes of {module}, but no {module}\.weight_scale"):
        decode(work / "out", work / "back")


def test_a_plain_checkpoint_is_not_decoded(work: Path) -> None:
    save("llama", work / "model")
    with pytest.raises(UnsupportedSourceError, match="is not quantized"):
        decode(work / "model", work / "back")
    assert {p.name for p in work.iterdir()} == {"model"}
