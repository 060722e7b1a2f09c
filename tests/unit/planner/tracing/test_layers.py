"""Equal layers: what counts them is ignored, what changes them is not."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from planner.tracing.layers import equal_layers


class Layer(nn.Module):
    def __init__(self, layer_idx: int, width: int = 4, scale: float = 1.0, window: int | None = None) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.scale = scale
        self.window = window
        self.linear = nn.Linear(width, width, device="meta")


class Model(nn.Module):
    def __init__(self, layers: list[Layer], **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(to_dict=lambda: config)
        self.layers = nn.ModuleList(layers)


def groups(model: Model) -> list[int]:
    numbers: dict[int, int] = {}
    return [numbers.setdefault(layer.signature, len(numbers)) for layer in equal_layers(model).values()]


def test_a_layer_index_does_not_tell_layers_apart() -> None:
    found = equal_layers(Model([Layer(i) for i in range(4)]))
    assert len({layer.signature for layer in found.values()}) == 1
    assert [layer.indices for layer in found.values()] == [(0,), (1,), (2,), (3,)]


def test_nor_does_an_index_in_steps_of_two() -> None:
    assert groups(Model([Layer(2 * i) for i in range(3)])) == [0, 0, 0]


def test_shapes_and_attributes_do() -> None:
    assert groups(Model([Layer(0), Layer(1, width=8), Layer(2)])) == [0, 1, 0]
    assert groups(Model([Layer(0, window=16), Layer(1), Layer(2, window=16)])) == [0, 1, 0]


def test_the_size_of_a_float_does_not_but_zero_does() -> None:
    assert groups(Model([Layer(0, scale=0.5), Layer(1, scale=0.25), Layer(2, scale=0.0)])) == [0, 0, 1]


def test_a_list_along_the_layers_in_the_configuration_does() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert groups(Model([Layer(i) for i in range(3)], layer_types=kinds)) == [0, 1, 0]
    assert groups(Model([Layer(i) for i in range(3)], layers_with_attention=[1])) == [0, 1, 0]


def test_a_list_of_one_needs_no_equals() -> None:
    assert equal_layers(Model([Layer(0)])) == {}


def test_dtypes_tell_layers_apart() -> None:
    model = Model([Layer(0), Layer(1)])
    model.layers[1].to(torch.bfloat16)
    assert groups(model) == [0, 1]
