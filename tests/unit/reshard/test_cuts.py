"""What accompanies quantized weights is cut with them, or refused."""

import json
import re
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.cuts import Cut
from reshard.errors import (
    CannotSplitError,
    CheckpointError,
    DamagedFileError,
)
from reshard.layout import Axis, Part
from reshard.model import Model, parse_model
from reshard.rules import Policy, Rules
from reshard.tensors import LogicalTensor

AUTOTP = Policy(name="safetensors", head="features", uneven=True)
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 100,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 261,
}


BLOCK = "model.layers.0."


def model(config: dict[str, Any]) -> Model:
    return parse_model(json.dumps(config).encode(), "config.json")


def rules(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Rules:
    tensors = {name: LogicalTensor(dtype="float32", shape=shape) for name, shape in shapes.items()}
    return Rules(model(config), tensors)


def test_cuts_of_scales_follow_their_weights_in_groups() -> None:
    part = Part(name="features", units=96, sharing="uneven")
    way = Cut(dim=1, axis=Axis(parts=(part,)), ratio=16)
    assert [way.intervals("s", 3, rank) for rank in range(3)] == [((0, 2),), ((2, 4),), ((4, 6),)]
    assert Cut(dim=1, axis=way.axis).intervals("s", 5, 0) == ((0, 20),)
    # All ranks refuse, those whose own bounds would fit as well.
    for rank in range(4):
        with pytest.raises(CannotSplitError, match=r"goes through a group of 16 .* work: 1, 2, 3, 6"):
            way.intervals("s", 4, rank)


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 12), st.sampled_from(("whole", "uneven")))
def test_groups_are_cut_where_their_elements_are_or_not_at_all(
    groups: int, size: int, tp_size: int, sharing: Literal["whole", "uneven"]
) -> None:
    part = Part(name="features", units=groups * size, sharing=sharing)
    weight = Cut(dim=1, axis=Axis(parts=(part,)))
    scales = Cut(dim=1, axis=weight.axis, ratio=size)
    try:
        found = [scales.intervals("s", tp_size, rank) for rank in range(tp_size)]
    except CannotSplitError as error:
        # Every degree that is named works, and this one would have cut a group or left a rank with nothing.
        listed = [int(n) for n in re.findall(r"\d+", str(error).rpartition("degrees that work:")[2])]
        if "goes through a group" in str(error):
            assert tp_size not in listed
            for degree in listed:
                assert scales.intervals("s", degree, degree - 1)
        else:
            assert groups * size < tp_size or (groups * size) % tp_size
        return
    for rank, intervals in enumerate(found):
        assert weight.intervals("w", tp_size, rank) == tuple((b * size, e * size) for b, e in intervals)


RECIPE = {"config_groups": {"g": {"weights": {"num_bits": 8, "group_size": 32}}}}


@pytest.mark.parametrize(
    "param, shape, outputs, inputs",
    [
        ("weight_scale", (96, 3), 1, 32),
        ("weight_scale", (96, 1), 1, None),
        ("weight_scale", (1,), None, None),
        ("weight_scale", (), None, None),
        ("weight_zero_point", (96, 3), 1, 32),
        ("weight_packed", (96, 24), 1, 4),
        ("SCB", (96,), 1, None),
        ("weight_format", (), None, None),
        ("input_scale", (1,), None, None),
    ],
)
def test_companions_of_a_row_parallel_weight(
    param: str, shape: tuple[int, ...], outputs: int | None, inputs: int | None
) -> None:
    module = f"{BLOCK}self_attn.o_proj"
    weight = {} if param == "weight_packed" else {f"{module}.weight": (96, 96)}
    rule = rules(LLAMA | {"quantization_config": RECIPE}, weight | {f"{module}.{param}": shape}).rule(
        f"{module}.{param}"
    )
    # Outputs of a row-parallel module are not cut by anybody: its role has no axis there.
    assert rule.outputs is None
    assert (None if rule.inputs is None else rule.inputs.ratio) == inputs
    column = f"{BLOCK}self_attn.q_proj"
    weight = {} if param == "weight_packed" else {f"{column}.weight": (96, 96)}
    rule = rules(LLAMA | {"quantization_config": RECIPE}, weight | {f"{column}.{param}": shape}).rule(
        f"{column}.{param}"
    )
    assert (None if rule.outputs is None else rule.outputs.ratio) == outputs
    assert rule.inputs is None


@pytest.mark.parametrize(
    "param, shape, message",
    [
        ("weight_scale", (96, 2), "2 groups of 32 do not make up the weight's 96 elements"),
        ("weight_shape", (2,), "holds the shape of the whole weight"),
        ("weight_g_idx", (96,), "how a weight_g_idx is shared out is not known"),
        ("qzeros", (6, 12), "how a qzeros is shared out is not known"),
    ],
)
def test_what_cannot_be_cut_with_its_weight_is_refused(
    param: str, shape: tuple[int, ...], message: str
) -> None:
    module = f"{BLOCK}self_attn.o_proj"
    of = rules(
        LLAMA | {"quantization_config": RECIPE}, {f"{module}.weight": (96, 96), f"{module}.{param}": shape}
    )
    with pytest.raises(CheckpointError) as caught:
        AUTOTP.cut(of.rule(f"{module}.{param}"))
    assert message in str(caught.value)
    assert f"{module}.{param}" in str(caught.value)


def test_scales_without_a_weight_are_refused() -> None:
    name = f"{BLOCK}self_attn.o_proj.weight_scale"
    with pytest.raises(DamagedFileError, match="has scales, but no weight"):
        rules(LLAMA | {"quantization_config": RECIPE}, {name: (96, 1)}).rule(name)


@pytest.mark.parametrize("param", ["weight_scale", "SCB", "qweight", "weight_g_idx"])
def test_what_no_recipe_explains_is_refused_whatever_the_format(param: str) -> None:
    """Formats for plain weights would leave it out."""
    name = f"{BLOCK}self_attn.o_proj.{param}"
    with pytest.raises(
        DamagedFileError, match=f"{param} is no plain weight or bias, and the configuration has no"
    ):
        rules(LLAMA, {name: (96,)}).rule(name)
    # Norms have had other names for their parameters, and are not cut.
    norm = f"{BLOCK}input_layernorm.gamma"
    assert AUTOTP.cut(rules(LLAMA, {norm: (96,)}).rule(norm)) is None
