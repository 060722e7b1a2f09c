"""Fields in the errors of libraries become options; what only looks like a field stays."""

import msgspec
import pytest

from cli.flags import with_options
from cli.reshard import command
from reshard.job import Request


@pytest.mark.parametrize(
    "sentence, shown",
    [
        ("`memory_bytes` of 1 MiB is too little", "--memory of 1 MiB is too little"),
        ("give another `output`, or set `overwrite`", "give another --output, or set --overwrite"),
        ("`planner roles` derives `roles`", "`planner roles` derives --roles"),
        ("no model class under `architectures`", "no model class under `architectures`"),
        ("the output of roles", "the output of roles"),
    ],
)
def test_fields_become_options(sentence: str, shown: str) -> None:
    assert with_options(sentence) == shown


def test_every_field_of_a_request_has_an_option() -> None:
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    for field in msgspec.structs.fields(Request):
        if field.name != "source":
            assert with_options(f"`{field.name}`") in options
