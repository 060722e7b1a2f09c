"""Int8 checkpoints: scales go with their rows and columns, and a cut through a group is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reshard.errors import CannotSplitError, DamagedFileError, UnsupportedTargetError

from .oracle import rank_shard
from .variants import VARIANTS, Tensors, Variant, assert_equal, cut, load, save

#: Heads of 4, MLP of 96: groups of 16 or 32 are cut at some degrees.
LLAMA = VARIANTS["llama"]._replace(settings=VARIANTS["llama"].settings | {"intermediate_size": 96})
FUSED = VARIANTS["phi3-kv2"]


def is_linear(name: str) -> bool:
    return ".layers." in name and name.endswith("proj.weight")


def scheme(strategy: str, group_size: int | None, form: str) -> dict[str, Any]:
    weights = {
        "num_bits": 8,
        "type": "int",
        "strategy": strategy,
        "group_size": group_size,
        "symmetric": True,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def grouped(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 values and `[out, in / group_size]` scales."""
    groups = weight.unflatten(1, (-1, group_size))
    scale = groups.abs().amax(-1) / 127.5
    return (groups / scale[..., None]).round().clamp(-128, 127).to(torch.int8).flatten(1), scale


def packed(values: torch.Tensor) -> torch.Tensor:
    """Four int8 per int32, the first in the lowest bits, 128 added to each."""
    unsigned = (values.to(torch.int16) + 128).to(torch.uint8)
    return unsigned.contiguous().view(torch.int32)


def quantized(folder: Path, kind: str, group_size: int, variant: Variant = LLAMA) -> Tensors:
    """Rewrite the checkpoint in `folder` in one of the forms; its tensors."""
    made: Tensors = {}
    for name, tensor in save(variant, folder).items():
        if not is_linear(name):
            made[name] = tensor
            continue
        values, scale = grouped(tensor, group_size or tensor.shape[1])
        if kind == "bitsandbytes":
            made[name] = values
            made[name.replace(".weight", ".SCB")] = scale[:, 0] * 127
            made[name.replace(".weight", ".weight_format")] = torch.tensor(0, dtype=torch.uint8)
            continue
        made[name + "_scale"] = scale
        if kind == "pack-quantized":
            made[name + "_packed"] = packed(values)
            made[name + "_shape"] = torch.tensor(values.shape)
        else:
            made[name] = values
            made[name.replace(".weight", ".input_scale")] = torch.tensor([0.5])
    strategy = "group" if group_size else "channel"
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = (
        {"quant_method": "bitsandbytes", "load_in_8bit": True}
        if kind == "bitsandbytes"
        else scheme(strategy, group_size or None, kind)
    )
    (folder / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in made.items()}, folder / "model.safetensors")
    return made


def dequantized(tensors: Tensors) -> Tensors:
    """What the weights mean."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int8:
            if name.rpartition(".")[2] in ("weight", "bias"):
                found[name] = tensor
            continue
        if name + "_scale" in tensors:
            scale = tensors[name + "_scale"]
            groups = tensor.float().unflatten(1, (scale.shape[1], -1))
            found[name] = (groups * scale[..., None]).flatten(1)
        else:
            found[name] = tensor.float() * tensors[name.replace(".weight", ".SCB")][:, None] / 127
    return found


def cut_and_merge(work: Path, degrees: tuple[int, ...]) -> None:
    cut(work / "q", work / "cut", *degrees)
    for tp_size in degrees:
        source = work / "cut" / f"tp{tp_size}"
        cut(source, work / f"m{tp_size}", 1, format="huggingface")


@pytest.mark.parametrize(
    "kind, group_size, variant, degrees",
    [
        ("int-quantized", 0, LLAMA, (1, 2, 3, 4, 8)),
        ("int-quantized", 4, LLAMA, (1, 2, 3, 4, 8)),
        ("int-quantized", 16, LLAMA, (1, 2, 3)),
        ("int-quantized", 0, FUSED, (1, 2, 4, 8)),
        ("bitsandbytes", 0, LLAMA, (1, 2, 3, 4, 8)),
        ("bitsandbytes", 0, FUSED, (1, 2, 4, 8)),
    ],
)
def test_a_ranks_weights_mean_what_its_share_of_the_whole_means(
    kind: str, group_size: int, variant: Variant, degrees: tuple[int, ...], work: Path
) -> None:
    made = quantized(work / "q", kind, group_size, variant)
    cut_and_merge(work, degrees)
    for tp_size in degrees:
        for rank in range(tp_size):
            mine = load(work / "cut" / f"tp{tp_size}", f"*-rank-{rank:02d}-*")
            assert set(mine) == set(made)
            assert_equal(dequantized(mine), rank_shard(variant, dequantized(made), tp_size, rank))
        merged = work / f"m{tp_size}"
        assert_equal(load(merged), made)
        recipe = json.loads((merged / "config.json").read_text())["quantization_config"]
        assert recipe["quant_method"] == ("bitsandbytes" if kind == "bitsandbytes" else "compressed-tensors")


@pytest.mark.parametrize(
    "group_size, tp_size, message",
    [
        (16, 4, "goes through a group of 16 quantized elements; degrees that work: 1, 2, 3, 6"),
        (32, 2, "goes through a group of 32 quantized elements; degrees that work: 1, 3"),
        # One group is as long as the row; one column of scales is not one scale for each row here.
        (96, 2, "goes through a group of 96 quantized elements; degrees that work: 1"),
    ],
)
def test_a_group_that_straddles_a_cut_is_refused(
    group_size: int, tp_size: int, message: str, work: Path
) -> None:
    quantized(work / "q", "int-quantized", group_size)
    with pytest.raises(CannotSplitError, match=r"(o|down)_proj\.weight_scale: a cut at tp_size=") as caught:
        cut(work / "q", work / "cut", tp_size)
    assert message in str(caught.value)
    assert not (work / "cut").exists()


def test_groups_that_the_recipe_contradicts_are_refused(work: Path) -> None:
    """Two groups of 64 and 32 columns must not pass for two of 48."""
    made = quantized(work / "q", "int-quantized", 48)
    config = json.loads((work / "q" / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 64
    (work / "q" / "config.json").write_text(json.dumps(config))
    assert made["model.layers.0.self_attn.o_proj.weight_scale"].shape == (96, 2)
    with pytest.raises(CannotSplitError, match="2 groups of 64 do not make up the weight's 96 elements"):
        cut(work / "q", work / "cut", 2)


def test_packed_weights_stay_whole_because_their_shape_does(work: Path) -> None:
    made = quantized(work / "q", "pack-quantized", 0)
    with pytest.raises(CannotSplitError, match="weight_shape holds the shape of the whole weight"):
        cut(work / "q", work / "cut", 2)
    cut(work / "q", work / "one", 1)
    cut(work / "one", work / "merged", 1, format="huggingface")
    assert_equal(load(work / "merged"), made)


@pytest.mark.parametrize("group_size", [0, 8])
def test_packed_weights_without_a_shape_are_cut_in_whole_words(group_size: int, work: Path) -> None:
    made = quantized(work / "q", "pack-quantized", group_size)
    bare = {n: t for n, t in made.items() if not n.endswith("weight_shape")}
    save_file(bare, work / "q" / "model.safetensors")
    cut_and_merge(work, (2, 3))
    for tp_size in (2, 3):
        assert_equal(load(work / f"m{tp_size}"), bare)
        for rank in range(tp_size):
            mine = load(work / "cut" / f"tp{tp_size}", f"*-rank-{rank:02d}-*")
            assert_equal(unpacked(mine), rank_shard(LLAMA, unpacked(bare), tp_size, rank))


def unpacked(tensors: Tensors) -> Tensors:
    """Packed weights as int8 under the name of the weight; scales left out."""
    found = {n: t for n, t in tensors.items() if not n.endswith(("_packed", "_scale"))}
    for name, tensor in tensors.items():
        if name.endswith("_packed"):
            values = (tensor.view(torch.uint8).to(torch.int16) - 128).to(torch.int8)
            found[name.removesuffix("_packed")] = values
    return found


def test_parameters_that_are_not_known_are_refused_where_they_would_be_cut(work: Path) -> None:
    """Activation order: indices of groups, which a rank would have to renumber."""
    made = quantized(work / "q", "int-quantized", 4)
    made["model.layers.0.self_attn.q_proj.weight_g_idx"] = torch.arange(96, dtype=torch.int32) // 4
    save_file(made, work / "q" / "model.safetensors")
    with pytest.raises(CannotSplitError, match="how a weight_g_idx is shared out is not known"):
        cut(work / "q", work / "cut", 2)
    cut(work / "q", work / "one", 1)
    assert_equal(load(work / "one"), made)


@pytest.mark.parametrize("format_name", ["deepspeed", "transformers", "vllm", "megatron"])
def test_formats_that_hold_no_quantized_weights_say_so(format_name: str, work: Path) -> None:
    quantized(work / "q", "int-quantized", 0)
    with pytest.raises(UnsupportedTargetError):
        cut(work / "q", work / "cut", 2, format=format_name)
    assert not (work / "cut").exists()


def test_a_quantized_checkpoint_is_not_cast(work: Path) -> None:
    quantized(work / "q", "int-quantized", 0)
    with pytest.raises(UnsupportedTargetError, match="scales and weights keep their dtypes"):
        cut(work / "q", work / "cut", 2, dtype="float16")


@pytest.mark.parametrize("format_name", ["safetensors", "transformers", "vllm", "megatron"])
def test_scales_that_the_configuration_hides_are_not_lost(format_name: str, work: Path) -> None:
    quantized(work / "q", "int-quantized", 0)
    config = json.loads((work / "q" / "config.json").read_text())
    del config["quantization_config"]
    (work / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFileError, match="no quantization_config that explains it"):
        cut(work / "q", work / "cut", 2, format=format_name)
    assert not (work / "cut").exists()
