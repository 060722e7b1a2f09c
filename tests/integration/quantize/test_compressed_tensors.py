"""What transformers and compressed-tensors make of the output: bytes, logits, tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from quantize.errors import GroupSizeError
from quantize.formats.compressed_tensors import output
from quantize.groups import search, symmetric
from reshard.errors import UnsupportedTargetError
from reshard.job import open_source
from tests.integration.reshard.variants import assert_equal, load

from .making import chosen, generated, load_model, logits, make, plain_model, restored, save

#: Two groups of 128, or one, in a row.
WIDE = {"hidden_size": 128, "intermediate_size": 256}

SCHEMES: dict[str, dict[str, Any]] = {
    "w8-group": {"bits": 8, "group_size": 128},
    "w8-channel": {"bits": 8, "group_size": None},
    "w4-group": {"bits": 4, "group_size": 32},
    "w4-channel": {"bits": 4, "group_size": None},
    "w8a8": {"bits": 8, "group_size": None, "activations": True},
}
ONLY_WEIGHTS = [name for name in SCHEMES if name != "w8a8"]


def theirs(weight: torch.Tensor, bits: int, group_size: int | None, *, is_packed: bool) -> dict[str, Any]:
    """What compressed-tensors itself stores of a weight."""
    arguments = QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=True,
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
    )
    groups = weight.unflatten(1, (-1, group_size or weight.shape[1]))
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}
    compressor = PackedQuantizationCompressor if is_packed else IntQuantizationCompressor
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    return {k: v for k, v in compressor.compress(state, scheme).items() if v is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_are_those_of_compressed_tensors(scheme: str, dtype: torch.dtype, work: Path) -> None:
    settings = SCHEMES[scheme]
    tensors = save("llama", work / "model", dtype, **WIDE)
    make(work / "model", work / "out", output(**settings, scales="absmax"))
    expected = dict(tensors)
    names = chosen(work / "model")
    assert len(names) == 14
    for name in names:
        module = name.removesuffix(".weight")
        is_packed = "activations" not in settings
        made = theirs(expected.pop(name), settings["bits"], settings["group_size"], is_packed=is_packed)
        expected |= {f"{module}.{param}": tensor for param, tensor in made.items()}
    assert_equal(load(work / "out"), expected)


@pytest.mark.parametrize("scales", ["absmax", "search"])
@pytest.mark.parametrize("scheme", ONLY_WEIGHTS)
def test_logits_are_those_of_the_decoded_weights(scheme: str, scales: Any, work: Path) -> None:
    settings = SCHEMES[scheme]
    formula = search if scales == "search" else symmetric
    tensors = save("llama", work / "model", **WIDE)
    make(work / "model", work / "out", output(**settings, scales=scales))
    model = load_model(work / "out")
    decoded = restored(
        tensors, chosen(work / "model"), lambda b: symmetric.decode(*formula.encode(b, **settings)[:2])
    )
    plain = plain_model(work / "model", decoded, work / "plain")
    assert torch.equal(logits(model), logits(plain))
    assert not torch.equal(logits(plain), logits(load_model(work / "model")))
    assert generated(model) == generated(plain)


def by_token(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Activations in 8 bits, one scale for each token."""
    (values,) = arguments
    scale = values.abs().amax(-1, keepdim=True) / 127.5
    return ((values / scale).round().clamp(-128, 127) * scale,)


def test_w8a8_rounds_activations_too(work: Path) -> None:
    tensors = save("llama", work / "model", **WIDE)
    make(work / "model", work / "out", output(**SCHEMES["w8a8"], scales="absmax"))
    model = load_model(work / "out")
    names = chosen(work / "model")
    decoded = restored(tensors, names, lambda b: symmetric.decode(*symmetric.encode(b, group_size=None)[:2]))
    plain = plain_model(work / "model", decoded, work / "plain")
    only_weights = logits(plain)
    for name in names:
        plain.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(by_token)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(model), only_weights, rtol=1e-3, atol=1e-3)
    assert generated(model) == generated(plain)


FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bloom": ("bloom", {}, {}),
    "gpt_neox": ("gpt_neox", {}, {}),
    "gpt_neox-head": ("gpt_neox", {}, {"include": ("embed_out",)}),
    "gptj": ("gptj", {}, {}),
    "gptj-head": ("gptj", {}, {"include": ("lm_head",)}),
    "llama-some": ("llama", {}, {"exclude": ("model.layers.0.*", "*.down_proj.weight")}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}, {}),
    "llama-head": ("llama", {}, {"include": ("lm_head",)}),
    "opt": ("opt", {}, {}),
    "phi3": ("phi3", {}, {}),
}
#: Families whose initialisation looks at weights that compressed Linears do not have (transformers 5.23).
DECODED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bert": ("bert", {}, {}),
    "falcon": ("falcon-grouped", {}, {}),
    "gpt_bigcode": ("gpt_bigcode", {}, {}),
    "t5": ("t5", {}, {"exclude": ("*.wo",)}),
}


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("case", FAMILIES | DECODED)
def test_families(case: str, work: Path) -> None:
    family, settings, patterns = (FAMILIES | DECODED)[case]
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if case in DECODED else {}
    tensors = save(family, work / "model", **settings)
    make(work / "model", work / "out", output(group_size=32), **patterns)
    names = chosen(work / "model", **patterns)
    assert names
    decoded = restored(tensors, names, lambda b: symmetric.decode(*search.encode(b, group_size=32)[:2]))
    plain = plain_model(work / "model", decoded, work / "plain")
    assert torch.equal(logits(load_model(work / "out", **options)), logits(plain))


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("scheme", ["w8-group", "w4-group"])
def test_a_device_map_with_disk_entries_takes_decoded_weights(scheme: str, work: Path) -> None:
    """Compressed modules that are offloaded lose their hooks; decoded while loaded, they keep them."""
    save("llama", work / "model", **WIDE)
    make(work / "model", work / "out", output(**SCHEMES[scheme]))
    places = dict.fromkeys(
        ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
    )
    model = AutoModelForCausalLM.from_pretrained(
        work / "out",
        device_map=places | {"model.layers.1": "disk"},
        offload_folder=work / "offload",
        quantization_config=CompressedTensorsConfig(dequantize=True),
    )
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    assert torch.equal(logits(model), logits(load_model(work / "out")))


@pytest.mark.parametrize(
    "family, patterns, message",
    [
        ("mixtral", {}, "experts.*transformers 5.23 joins experts.*format='bitsandbytes'` with `exclude"),
        (
            "mixtral",
            {"exclude": ("*.experts.*",)},
            "experts.*fails to in any checkpoint of compressed-tensors",
        ),
        ("t5", {}, r"wo\.weight: transformers keeps it in float32.*exclude='\*\.wo'"),
        ("llama", {"include": ("model.embed_tokens",)}, "embed_tokens.weight is no Linear"),
        ("opt-projected", {"include": ("*project_in",)}, "project_in.weight is no Linear"),
    ],
)
def test_what_transformers_would_not_load_is_refused(
    family: str, patterns: dict[str, Any], message: str, work: Path
) -> None:
    save(family, work / "model")
    with pytest.raises(UnsupportedTargetError, match=message):
        make(work / "model", work / "out", output(group_size=32), **patterns)
    assert {p.name for p in work.iterdir()} == {"model"}


def test_a_group_size_that_does_not_divide_names_those_that_do(work: Path) -> None:
    save("llama", work / "model")
    with pytest.raises(
        GroupSizeError, match=r"96 columns.*groups of 128 do not divide; `group_size=32, 16, 8` would"
    ):
        make(work / "model", work / "out", output())
    assert {p.name for p in work.iterdir()} == {"model"}


def test_the_configuration_says_what_was_done(work: Path) -> None:
    save("llama", work / "model")
    make(work / "model", work / "out", output(bits=4, group_size=32), exclude=("*.k_proj",))
    config = json.loads((work / "out" / "config.json").read_text())
    said = config.pop("quantization_config")
    assert config == json.loads((work / "model" / "config.json").read_text())
    assert said["quant_method"] == "compressed-tensors"
    assert said["format"] == "pack-quantized"
    assert said["config_groups"]["group_0"]["weights"]["num_bits"] == 4
    heads = [f"model.layers.{layer}.self_attn.k_proj" for layer in (0, 1)]
    assert said["ignore"] == ["lm_head", *heads]


def test_families_that_load_decoded_only_are_told_apart(work: Path) -> None:
    for family in ("falcon-grouped", "gpt_bigcode", "t5", "bert", "llama", "bloom"):
        save(family, work / family)
        notes = " ".join(output().notes(open_source(str(work / family))))
        assert "vLLM load it" in notes
        assert ("CompressedTensorsConfig(dequantize=True)" in notes) == (family not in ("llama", "bloom"))
