"""Schemes as values: what they say of a shape, what they refuse, and how a recipe keeps them."""

import msgspec
import pytest

from quantize.errors import GroupSizeError, InvalidSchemeError
from quantize.scheme import (
    SCHEMES,
    Groups,
    Moq,
    RowAbsmax,
    Rows,
    Scheme,
    Symmetric,
    SymmetricSearch,
    ZeroInference,
)

ALL = (
    Moq(groups=32, mlp_extra_grouping=True),
    Rows(group_rows=2),
    Groups(bits=3, group_size=32),
    Symmetric(group_size=None),
    SymmetricSearch(bits=4),
    ZeroInference(bits=4, dim=0),
    RowAbsmax(),
)


@pytest.mark.parametrize("scheme", ALL, ids=lambda s: s.name)
def test_a_recipe_keeps_a_scheme(scheme: Scheme) -> None:
    written = msgspec.json.encode(scheme)
    assert msgspec.json.decode(written, type=Scheme) == scheme
    assert msgspec.json.decode(written)["name"] == scheme.name
    assert SCHEMES[scheme.name] is type(scheme)


def test_every_scheme_is_in_the_table() -> None:
    assert sorted(SCHEMES) == sorted(s.name for s in ALL)
    assert [s.name for s in ALL if not s.is_symmetric] == ["zero-inference"]


@pytest.mark.parametrize(
    "scheme,shape,group_numel,scale_shape",
    [
        # 20 weights in 6 groups: 3 each, which makes 6 groups and one of 2.
        (Moq(groups=6), (4, 5), 3, (7,)),
        # 4 times as wide as high: 64 weights in 2 * 4 groups.
        (Moq(groups=4, mlp_extra_grouping=True), (4, 16), 8, (8,)),
        (Moq(groups=4, mlp_extra_grouping=True), (16, 4), 8, (8,)),
        (Moq(groups=4, mlp_extra_grouping=True), (5, 16), 20, (4,)),
        (Moq(groups=4), (4, 16), 16, (4,)),
        (Rows(), (6, 10), 10, (6,)),
        (Rows(group_rows=3), (6, 10), 30, (2,)),
        (Groups(group_size=5), (6, 10), 5, (6, 2)),
        (Symmetric(group_size=None), (6, 10), 10, (6, 1)),
        (SymmetricSearch(group_size=2), (6, 10), 2, (6, 5)),
        (ZeroInference(group_size=5), (6, 10), 5, (6, 2, 1)),
        (ZeroInference(group_size=3, dim=0), (6, 10), 3, (2, 1, 10)),
        (RowAbsmax(), (6, 10), 10, (6,)),
    ],
)
def test_what_a_scheme_makes_of_a_shape(
    scheme: Scheme, shape: tuple[int, int], group_numel: int, scale_shape: tuple[int, ...]
) -> None:
    assert scheme.group_numel(shape) == group_numel
    assert scheme.scale_shape(shape) == scale_shape


@pytest.mark.parametrize(
    "kind,settings,words",
    [
        (Moq, {"bits": 9}, "moq has no codes of 9 bits; choose 2, 3, 4, 5, 6, 7, 8"),
        (Moq, {"groups": 0}, "moq cannot make 0 groups"),
        (Rows, {"group_rows": 0}, "rows cannot make groups of 0 rows"),
        (Groups, {"group_size": 0}, "groups cannot make groups of 0 weights"),
        (Symmetric, {"bits": 5}, "symmetric has no codes of 5 bits; choose 4, 8"),
        (ZeroInference, {"dim": 2}, "zero-inference has no dimension 2"),
        (ZeroInference, {"group_size": -1}, "cannot make groups of -1 weights"),
        (RowAbsmax, {"bits": 4}, "row-absmax has no codes of 4 bits; choose 8"),
    ],
)
def test_settings_that_no_formula_has_are_refused(
    kind: type[Scheme], settings: dict[str, int], words: str
) -> None:
    with pytest.raises(InvalidSchemeError, match=words):
        kind(**settings)


def test_a_recipe_with_settings_that_no_formula_has_is_refused() -> None:
    with pytest.raises(InvalidSchemeError, match="no codes of 16 bits"):
        msgspec.json.decode(b'{"name":"symmetric","bits":16}', type=Scheme)
    with pytest.raises(msgspec.ValidationError, match="unknown field `groupsize`"):
        msgspec.json.decode(b'{"name":"symmetric","groupsize":16}', type=Scheme)
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'gptq'"):
        msgspec.json.decode(b'{"name":"gptq"}', type=Scheme)


@pytest.mark.parametrize(
    "scheme,words",
    [
        (Moq(groups=61), "60 weights cannot be cut into 61 groups"),
        (Rows(group_rows=4), "groups of 4 rows do not divide an output dimension of 6; 2 would"),
        (Groups(group_size=128), "groups of 128 weights do not divide an input dimension of 10; 2 would"),
        (ZeroInference(group_size=4, dim=0), "groups of 4 weights do not divide an output dimension of 6"),
    ],
)
def test_groups_that_do_not_tile_are_refused(scheme: Scheme, words: str) -> None:
    with pytest.raises(GroupSizeError, match=words):
        scheme.scale_shape((6, 10))


def test_an_odd_row_of_four_bit_codes_is_refused() -> None:
    with pytest.raises(GroupSizeError, match="pack in pairs along the input dimension, and 9 is odd"):
        ZeroInference(bits=4, group_size=3).group_numel((6, 9))
