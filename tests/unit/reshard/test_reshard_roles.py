"""Roles as data: what a file may say, and which indices are a rank's."""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reshard import roles as roles_files
from reshard.errors import (
    CannotSplitError,
    CheckpointError,
    DamagedFileError,
    InconsistentShardsError,
    UnsupportedSourceError,
)
from reshard.model import Model
from reshard.role_cuts import RoleCut, cuts_by_roles, degrees
from reshard.roles import Roles, WeightRoles
from reshard.tensors import LogicalTensor

#: Two layers of a projection with rows, one with columns, and their biases.
SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in (0, 1)
    for name, shape in (
        ("up.weight", (12, 5)),
        ("up.bias", (12,)),
        ("down.weight", (5, 12)),
        ("down.bias", (5,)),
    )
} | {"model.norm.weight": (5,)}

HALVES = WeightRoles(dim=0, groups=(((0, 6),), ((6, 12),)))
COLUMNS = WeightRoles(dim=1, groups=HALVES.groups)


def roles(**changes: Any) -> Roles:
    return msgspec.structs.replace(
        Roles(
            model_type="new",
            weights={
                "model.layers.*.up.weight": HALVES,
                "model.layers.*.up.bias": HALVES,
                "model.layers.*.down.weight": COLUMNS,
            },
            bias_once=("model.layers.*.down.bias",),
        ),
        **changes,
    )


def cuts(
    given_roles: Roles, tp_size: int = 2, shapes: dict[str, tuple[int, ...]] = SHAPES, **config: Any
) -> dict[str, RoleCut | None]:
    model = Model(config={"model_type": "new"} | config, table=None, geometry=None)
    tensors = {name: LogicalTensor(dtype="float32", shape=shape) for name, shape in shapes.items()}
    return cuts_by_roles(given_roles, model, tensors, tp_size)


def with_weight(name: str, weight: WeightRoles) -> Roles:
    return roles(weights=roles().weights | {name: weight})


def test_the_file_is_strict_and_has_one_digest_for_one_meaning() -> None:
    raw = roles_files.encode(roles())
    assert roles_files.decode(raw, "f") == roles()
    spread = msgspec.json.format(raw, indent=4)
    assert spread != raw
    assert roles_files.digest(roles_files.decode(spread, "f")) == roles_files.digest(roles())
    other = roles(bias_once=())
    assert roles_files.digest(other) != roles_files.digest(roles())


@pytest.mark.parametrize(
    "raw, says",
    [
        (b"", "f is no roles file"),
        (b"[]", "f is no roles file: Expected `object`"),
        (b"\xff\xfe", "f is no roles file"),
        (b"[" * 100_000, "f is no roles file"),
        (b'{"model_type": "new", "weights": {}}', "f has schema_version None, and this release reads 1"),
        (b'{"schema_version": 2, "layers": []}', "f has schema_version 2, and this release reads 1"),
        (b'{"schema_version": true, "model_type": "new", "weights": {}}', "f is no roles file"),
        (b'{"schema_version": 1, "weights": {}}', "missing required field `model_type`"),
        (b'{"schema_version": 1, "model_type": "new", "weights": {}, "bias": []}', "unknown field `bias`"),
        (
            b'{"schema_version": 1, "model_type": "new", "weights": {"a": {"dim": -1, "groups": []}}}',
            "Expected `int` >= 0",
        ),
        (
            b'{"schema_version": 1, "model_type": "new", "weights": {"a": {"dim": 0, "groups": [[[0]]]}}}',
            "length 2",
        ),
    ],
)
def test_what_is_no_roles_file_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(DamagedFileError, match="f "):
        roles_files.decode(raw, "f")
    with pytest.raises(DamagedFileError) as caught:
        roles_files.decode(raw, "f")
    assert says in str(caught.value)


def test_layers_may_be_given_by_a_pattern() -> None:
    found = cuts(roles())
    assert set(found) == set(SHAPES)
    for layer in (0, 1):
        name = f"model.layers.{layer}."
        assert found[name + "up.weight"] == RoleCut(dim=0, ranks=(((0, 6),), ((6, 12),)))
        assert found[name + "up.bias"] == found[name + "up.weight"]
        assert found[name + "down.weight"] == RoleCut(dim=1, ranks=(((0, 6),), ((6, 12),)))
        assert found[name + "down.bias"] is None
    assert found["model.norm.weight"] is None
    assert set(cuts(roles(), 1).values()) == {None}


def test_a_name_goes_before_a_pattern() -> None:
    other = WeightRoles(dim=0, groups=(((6, 12),), ((0, 6),)))
    found = cuts(with_weight("model.layers.1.up.weight", other))
    assert found["model.layers.0.up.weight"] == RoleCut(dim=0, ranks=(((0, 6),), ((6, 12),)))
    assert found["model.layers.1.up.weight"] == RoleCut(dim=0, ranks=(((6, 12),), ((0, 6),)))


def test_a_star_is_a_number_and_nothing_else() -> None:
    with pytest.raises(InconsistentShardsError, match=r"name model\.layers\.0\.\*\.weight, which the"):
        cuts(with_weight("model.layers.0.*.weight", HALVES))


def test_a_checkpoint_of_the_bare_model_has_shorter_names() -> None:
    bare = {name.removeprefix("model."): shape for name, shape in SHAPES.items()}
    whole = {f"model.{name}": cut for name, cut in cuts(roles(), shapes=bare).items()}
    assert whole == cuts(roles())


def test_indices_in_no_group_are_everybodys_and_stay_in_their_place() -> None:
    # Rows 0:4 and 4:8 are two query heads, 8:12 the one key head that both use.
    weight = WeightRoles(dim=0, groups=(((0, 4),), ((4, 8),)))
    found = cuts(with_weight("model.layers.0.up.weight", weight))
    assert found["model.layers.0.up.weight"] == RoleCut(dim=0, ranks=(((0, 4), (8, 12)), ((4, 12),)))


def test_groups_in_pieces_are_put_together_in_ascending_order() -> None:
    # [q | k] of two heads each, three rows a head; the regions are listed the other way round.
    weight = WeightRoles(dim=0, groups=(((6, 9), (0, 3)), ((9, 12), (3, 6))))
    found = cuts(with_weight("model.layers.0.up.weight", weight))
    assert found["model.layers.0.up.weight"] == RoleCut(dim=0, ranks=(((0, 3), (6, 9)), ((3, 6), (9, 12))))


@pytest.mark.parametrize(
    "weight, says",
    [
        (WeightRoles(dim=0, groups=()), "give model.layers.1.up.weight no groups"),
        (WeightRoles(dim=0, groups=(((0, 12),), ())), "give group 1 of model.layers.1.up.weight no indices"),
        (WeightRoles(dim=2, groups=HALVES.groups), "model.layers.1.up.weight, which has shape [12, 5]"),
        (WeightRoles(dim=1, groups=HALVES.groups), "the interval [0, 6), and dimension 1 has indices 0 to 4"),
        (WeightRoles(dim=0, groups=(((0, 6),), ((6, 13),))), "model.layers.1.up.weight the interval [6, 13)"),
        (WeightRoles(dim=0, groups=(((-2, 6),), ((6, 12),))), "the interval [-2, 6)"),
        (WeightRoles(dim=0, groups=(((0, 6),), ((8, 8),))), "the interval [8, 8)"),
        (WeightRoles(dim=0, groups=(((0, 6),), ((9, 7),))), "the interval [9, 7)"),
        (WeightRoles(dim=0, groups=(((0, 7),), ((6, 12),))), "index 6 of model.layers.1.up.weight, dim"),
        (WeightRoles(dim=0, groups=(((0, 6), (3, 4)), ((6, 12),))), "index 3 of model.layers.1.up.weight"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tp_size", [1, 2])
def test_intervals_that_make_no_sense_are_refused(weight: WeightRoles, says: str, tp_size: int) -> None:
    with pytest.raises(CannotSplitError) as caught:
        cuts(with_weight("model.layers.1.up.weight", weight), tp_size)
    assert says in str(caught.value)


def test_roles_of_a_narrower_model_would_count_inputs_twice() -> None:
    narrow = WeightRoles(dim=1, groups=(((0, 5),), ((5, 10),)))
    says = r"leave index 10 of the 12 inputs of model\.layers\.1\.down\.weight to every rank"
    with pytest.raises(CannotSplitError, match=says):
        cuts(with_weight("model.layers.1.down.weight", narrow))
    # Of a matrix stored the other way round these are outputs, as the cut of its bias tells.
    shapes = {"a.weight": (5, 12), "a.bias": (12,)}
    rows = msgspec.structs.replace(narrow, dim=0)
    found = cuts(Roles(model_type="new", weights={"a.weight": narrow, "a.bias": rows}), shapes=shapes)
    assert found["a.weight"] == RoleCut(dim=1, ranks=(((0, 5), (10, 12)), ((5, 12),)))


def test_degrees_are_the_common_divisors_of_all_numbers_of_groups() -> None:
    twelve = WeightRoles(dim=0, groups=tuple(((i, i + 1),) for i in range(12)))
    eight = WeightRoles(dim=1, groups=(*(((i, i + 1),) for i in range(7)), ((7, 12),)))
    given_roles = with_weight("model.layers.*.up.weight", twelve)
    assert degrees(given_roles) == (1, 2)
    weights = {
        "model.layers.*.up.weight": twelve,
        "model.layers.*.up.bias": twelve,
        "model.layers.*.down.weight": eight,
    }
    given_roles = roles(weights=weights)
    assert degrees(given_roles) == (1, 2, 4)
    assert cuts(given_roles, 4)["model.layers.0.up.bias"] == RoleCut(
        dim=0, ranks=tuple(((r * 3, r * 3 + 3),) for r in range(4))
    )
    says = (
        r"cut model\.layers\.\d\.down\.weight in 8 groups, which cannot be shared out over tp_size=3; "
        "degrees that work: 1, 2, 4"
    )
    with pytest.raises(CannotSplitError, match=says):
        cuts(given_roles, 3)


def test_what_the_checkpoint_lacks_is_named() -> None:
    with pytest.raises(InconsistentShardsError, match=r"name model\.layers\.7\.up\.weight, which"):
        cuts(with_weight("model.layers.7.up.weight", HALVES))
    with pytest.raises(InconsistentShardsError, match=r"name lm_head\.bias, which the checkpoint"):
        cuts(roles(bias_once=(*roles().bias_once, "lm_head.bias")))
    many = {f"model.layers.{i}.up.weight": HALVES for i in range(9)}
    with pytest.raises(InconsistentShardsError, match="and 3 more, which"):
        cuts(roles(weights=roles().weights | many))


def test_two_patterns_for_one_tensor_are_refused() -> None:
    shapes = {"blocks.0.experts.0.up.weight": (12, 5)}
    weights = {"blocks.*.experts.0.up.weight": HALVES, "blocks.0.experts.*.up.weight": HALVES}
    with pytest.raises(InconsistentShardsError, match=r"say twice what blocks\.0\.experts\.0\.up\.weight is"):
        cuts(roles(weights=weights, bias_once=()), shapes=shapes)


def test_biases_of_cut_weights_must_be_accounted_for() -> None:
    with pytest.raises(CannotSplitError, match=r"model\.layers\.0\.down\.bias, .* say nothing of these"):
        cuts(roles(bias_once=()))
    with pytest.raises(CannotSplitError, match=r"cut model\.layers\.0\.up\.bias, .* and also say"):
        cuts(roles(bias_once=("model.layers.*.down.bias", "model.layers.*.up.bias")))


def test_another_family_a_quantized_checkpoint_and_empty_roles_are_refused() -> None:
    with pytest.raises(InconsistentShardsError, match="a 'old' model, and the checkpoint is of a 'new' one"):
        cuts(roles(model_type="old"))
    with pytest.raises(UnsupportedSourceError, match="the checkpoint is quantized"):
        cuts(roles(), quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UnsupportedSourceError, match="the checkpoint is quantized"):
        cuts(roles(), shapes=SHAPES | {"model.layers.0.up.weight_scale": (12, 1)})
    with pytest.raises(CannotSplitError, match="cut no tensor, so tp_size=2 would give 2 copies"):
        cuts(roles(weights={}, bias_once=()))


@st.composite
def owners(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A number of groups, and for every index its group or -1, each group with some index."""
    num_groups = draw(st.sampled_from((1, 2, 3, 4, 6, 12)))
    found = draw(st.lists(st.integers(-1, num_groups - 1), min_size=num_groups, max_size=40))
    assume(set(range(num_groups)) <= set(found))
    return num_groups, found


def _intervals(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    yield from ((int(begin), int(end)) for begin, end in edges.reshape(-1, 2))


@given(owners(), st.sampled_from((1, 2, 3, 4, 6)), st.randoms())
def test_any_index_sets_are_cut_as_numpy_cuts(case: tuple[int, list[int]], tp_size: int, random: Any) -> None:
    num_groups, found = case
    owner = np.array(found)
    groups = []
    for group in range(num_groups):
        intervals = list(_intervals(owner == group))
        random.shuffle(intervals)
        groups.append(tuple(intervals))
    weight = WeightRoles(dim=0, groups=tuple(groups))
    given_roles = Roles(model_type="new", weights={"a.weight": weight})
    shapes = {"a.weight": (len(owner), 2)}
    try:
        (cut,) = cuts(given_roles, tp_size, shapes).values()
    except CheckpointError as error:
        assert num_groups % tp_size
        assert "degrees that work" in str(error)
        return
    assert num_groups % tp_size == 0
    if tp_size == 1:
        assert cut is None
        return
    assert cut is not None
    for rank in range(tp_size):
        held = np.concatenate([np.arange(*interval) for interval in cut.intervals("a.weight", tp_size, rank)])
        mine = (owner == -1) | (owner * tp_size // num_groups == rank)
        assert held.tolist() == np.flatnonzero(mine).tolist()
