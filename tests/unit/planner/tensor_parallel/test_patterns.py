"""Names of equal layers said once, and only where that says neither too much nor two things."""

import numpy as np
import pytest

from planner.tensor_parallel.patterns import folded, pattern_of
from planner.tensor_parallel.roles_file import coarse, export
from planner.tracing.partition.schema import ParameterPartition, PartitionSpec

NAMES = [f"h.{layer}.{name}" for layer in range(3) for name in ("up.weight", "down.weight", "down.bias")]


def role(name: str, dim: int, groups: list[int], **changes: object) -> ParameterPartition:
    family = np.asarray(groups)
    size = int(family.max()) + 1
    return ParameterPartition(
        role="row" if dim else "column",
        dim=dim,
        families=(family,),
        family_sizes=(size,),
        num_groups=size,
        sharded=float((family >= 0).mean()),
        meets=name,
    )


def test_every_number_becomes_a_star() -> None:
    assert pattern_of("encoder.block.0.layer.1.wo.weight") == "encoder.block.*.layer.*.wo.weight"
    assert pattern_of("wi_0.weight") == "wi_0.weight"


def test_equal_layers_are_said_once() -> None:
    values = {name: name.split(".")[2] for name in NAMES if name.endswith("weight")}
    assert folded(values, values, NAMES) == {"h.*.up.weight": "up", "h.*.down.weight": "down"}


def test_a_layer_of_another_kind_unfolds_its_names() -> None:
    values = dict.fromkeys(NAMES, 0) | {"h.1.up.weight": 1}
    found = folded(values, values, NAMES)
    assert found["h.1.up.weight"] == 1
    assert found["h.0.up.weight"] == 0
    assert "h.*.up.weight" not in found
    assert found["h.*.down.weight"] == 0


def test_a_layer_without_a_value_unfolds_them_too() -> None:
    assert folded({"h.0.up.weight": 1}, {"h.0.up.weight": 1}, NAMES) == {"h.0.up.weight": 1}


@pytest.mark.parametrize("num_groups", [1, 71, 112, 1024, 57_344, 11_008, 28_672])
def test_fewer_groups_allow_the_same_degrees(num_groups: int) -> None:
    fewer = coarse(num_groups)
    assert num_groups % fewer == 0
    degrees = [n for n in range(1, 257) if num_groups % n == 0]
    assert degrees == [n for n in range(1, 257) if fewer % n == 0]


def test_the_file_has_intervals_of_every_group() -> None:
    up, down = role("h.0.down.weight", 0, [0, 0, 1, 1, -1]), role("h.0.down.weight", 1, [0, 1, 1, 0])
    parameters = {f"h.{i}.{n}.weight": r for i in range(3) for n, r in (("up", up), ("down", down))}
    biases = frozenset(name for name in NAMES if name.endswith("bias"))
    file = export(
        PartitionSpec(model_type="x", parameters=parameters, biases=biases), NAMES, config_sha256="0"
    )
    assert file.weights["h.*.up.weight"].groups == (((0, 2),), ((2, 4),))
    assert file.weights["h.*.down.weight"].groups == (((0, 1), (3, 4)), ((1, 3),))
    assert file.weights["h.*.down.weight"].dim == 1
    assert file.bias_once == ("h.*.down.bias",)
    assert file.config_sha256 == "0"


def test_families_of_several_sizes_are_put_together_group_by_group() -> None:
    both = ParameterPartition(
        role="row",
        dim=1,
        families=(np.array([0, 1, -1, -1, -1, -1]), np.array([-1, -1, 0, 1, 2, 3])),
        family_sizes=(2, 4),
        num_groups=2,
        sharded=1.0,
        meets="o",
    )
    file = export(PartitionSpec(model_type="x", parameters={"o": both}), ["o"])
    assert file.weights["o"].groups == (((0, 1), (2, 4)), ((1, 2), (4, 6)))
