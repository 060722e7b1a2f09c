"""The project's own form: codes and scales of the arithmetic, for every scheme and dtype."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from quantize.errors import GroupSizeError
from quantize.formats.plain import METHOD, output
from quantize.groups import blocks, moq, rows, search, symmetric, zero_inference
from quantize.scheme import Groups, Moq, Rows, Scheme, Symmetric, SymmetricSearch, ZeroInference
from reshard.errors import UnsupportedTargetError
from tests.integration.reshard.variants import Tensors, assert_equal, load

from .making import block, chosen, make, save, tensor

SCHEMES: dict[str, Scheme] = {
    "moq": Moq(groups=8),
    "moq-remainder": Moq(groups=7),
    "moq-extra": Moq(groups=8, mlp_extra_grouping=True),
    "rows": Rows(),
    "rows-4": Rows(group_rows=4),
    "groups": Groups(group_size=16),
    "groups-row": Groups(group_size=None),
    "symmetric": Symmetric(group_size=16),
    "symmetric-row": Symmetric(group_size=None),
    "symmetric-search": SymmetricSearch(group_size=32),
    "zero-inference": ZeroInference(group_size=32),
}


def coded(scheme: Scheme, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the arithmetic makes of a whole weight, in the shapes that are stored."""
    given = block(weight)
    numel = scheme.group_numel(tuple(weight.shape))
    made: blocks.Encoded
    match scheme:
        case Moq():
            made = moq.encode(given, group_numel=numel)
            made = made._replace(scales=moq.kept(made.scales).reshape(-1))
        case Rows():
            made = rows.encode(given, group_numel=numel)
        case Groups():
            made = rows.encode(given, group_numel=numel)
            made = made._replace(scales=made.scales.reshape(len(given), -1))
        case Symmetric():
            made = symmetric.encode(given, group_size=scheme.group_size)
        case SymmetricSearch():
            made = search.encode(given, group_size=scheme.group_size)
        case ZeroInference():
            made = zero_inference.encode(given, group_size=scheme.group_size)
            assert made.minimum is not None
            made = made._replace(scales=made.scales[..., 0], minimum=made.minimum[..., 0])
        case _:
            raise AssertionError(scheme)
    # Chunks that are no whole rows have scales that no rank can be given a share of.
    is_whole = numel % weight.shape[1] == 0 and weight.numel() % numel == 0
    param = "weight_scale" if is_whole or not isinstance(scheme, Moq) else "weight_chunk_scale"
    found = {"weight": tensor(made.codes), param: tensor(made.scales)}
    return found if made.minimum is None else found | {"weight_minimum": tensor(made.minimum)}


def expected(scheme: Scheme, tensors: Tensors, names: tuple[str, ...]) -> Tensors:
    """The whole checkpoint, quantized by the arithmetic."""
    made = {name: t for name, t in tensors.items() if name not in names}
    for name in names:
        module = name.removesuffix(".weight")
        made |= {f"{module}.{param}": t for param, t in coded(scheme, tensors[name]).items()}
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_codes_and_scales_are_those_of_the_arithmetic(name: str, dtype: torch.dtype, work: Path) -> None:
    scheme = SCHEMES[name]
    # 256 is four times the hidden size: `mlp_extra_grouping` applies.
    tensors = save("llama", work / "model", dtype, intermediate_size=256)
    make(work / "model", work / "out", output(scheme))
    assert_equal(load(work / "out"), expected(scheme, tensors, chosen(work / "model")))
    said = json.loads((work / "out" / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == METHOD
    assert msgspec.convert(said["scheme"], Scheme) == scheme


def test_groups_are_whole_whatever_the_strips(work: Path) -> None:
    """Strips of 8 MiB: a chunk of MoQ's begins in one and ends in another."""
    from safetensors.torch import save_file

    tensors = save("llama", work / "model", hidden_size=64, intermediate_size=96)
    name = "model.layers.0.mlp.up_proj.weight"
    wide = np.random.default_rng(0).standard_normal((3000, 1500), np.float32)
    tensors[name] = torch.from_numpy(wide)
    save_file(tensors, work / "model" / "model.safetensors")
    others = tuple(other for other in chosen(work / "model") if other != name)
    for scheme in (Moq(groups=7), Rows(group_rows=1000), SymmetricSearch(group_size=None)):
        make(work / "model", work / scheme.name, output(scheme), exclude=others)
        found = load(work / scheme.name)
        for param, values in coded(scheme, tensors[name]).items():
            assert torch.equal(found[name.removesuffix("weight") + param], values), (scheme, param)


@pytest.mark.parametrize(
    "scheme, error, message",
    [
        (
            Symmetric(bits=4),
            UnsupportedTargetError,
            "one code per byte; 4 bits are packed by compressed-tensors",
        ),
        (ZeroInference(dim=0), UnsupportedTargetError, "groups along the input only"),
        (Symmetric(group_size=48), GroupSizeError, r"model\.layers.*groups of 48.*64"),
        (Groups(group_size=48), GroupSizeError, r"model\.layers.*groups of 48.*64"),
        (Rows(group_rows=48), GroupSizeError, r"model\.layers.*groups of 48 rows.*64"),
        (Moq(groups=5000), GroupSizeError, r"model\.layers.*5000 groups; ask for fewer"),
    ],
)
def test_what_has_no_place_is_refused(
    scheme: Scheme, error: type[Exception], message: str, work: Path
) -> None:
    save("llama", work / "model")
    with pytest.raises(error, match=message):
        make(work / "model", work / "out", output(scheme))
    assert {p.name for p in work.iterdir()} == {"model"}
