"""Sentences of the library, which name fields, in the words of the command line."""

import click
import pytest

from cli.flags import with_options
from cli.quantize_request import usage_errors
from quantize import InvalidRequestError
from quantize.errors import GroupSizeError, NonfiniteWeightError


@pytest.mark.parametrize(
    "sentence, told",
    [
        ("give `group_size='row'`", "give --group-size row"),
        ("`group_size=32, 16, 8` would", "--group-size 32, 16, 8 would"),
        ("leave it out: `exclude='*.experts.*'`", "leave it out: --exclude '*.experts.*'"),
        ("leave it out of `include`", "leave it out of --include"),
        ("`tp_size=2` `groups=4` works", "--tp 2 --groups 4 works"),
        ("`dequantize` makes a plain checkpoint", "--dequantize makes a plain checkpoint"),
        (
            "`torch` is not a field, nor is exclude",
            "`torch` is not a field, nor is exclude",
        ),
    ],
)
def test_fields_become_options(sentence: str, told: str) -> None:
    assert with_options(sentence, "quantize") == told


def test_errors_keep_their_class_and_what_they_carry() -> None:
    with pytest.raises(GroupSizeError, match=r"^take `group_size=8`$"), usage_errors():
        raise GroupSizeError("take `group_size=8`")
    with pytest.raises(NonfiniteWeightError) as raised, usage_errors():
        raise NonfiniteWeightError(7)
    assert raised.value.index == 7


def test_fields_that_do_not_go_together_are_a_usage_error() -> None:
    with pytest.raises(click.UsageError) as raised, usage_errors():
        raise InvalidRequestError("`activations` belongs to `format='compressed-tensors'`")
    assert raised.value.message == "--activations belongs to --format compressed-tensors."
