"""Fields in the errors of libraries become options; what only looks like a field stays."""

import msgspec
import pytest

from cli.commands.plan import command as plan_command
from cli.flags import with_options
from cli.quantize import command as quantize_command
from cli.reshard import command as reshard_command
from planner import Request as PlanRequest
from quantize import Request as QuantizeRequest
from reshard import Request as ReshardRequest


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
    assert with_options(sentence, "reshard") == shown


@pytest.mark.parametrize(
    "sentence, shown",
    [
        ("shorten `prompt_tokens` or `new_tokens`", "shorten --prompt or --new-tokens"),
        ("`runtimes=cpu` chooses it", "--runtime cpu chooses it"),
        ("add `nvme=1TB@3GB/s`", "add --nvme 1TB@3GB/s"),
        ("`degrees` is no field of a plan's request", "`degrees` is no field of a plan's request"),
    ],
)
def test_fields_with_values_become_options(sentence: str, shown: str) -> None:
    assert with_options(sentence, "planner") == shown


REQUESTS = {
    "planner": (plan_command, PlanRequest, ()),
    "reshard": (reshard_command, ReshardRequest, ("source",)),
    "quantize": (quantize_command, QuantizeRequest, ("checkpoint",)),
}


@pytest.mark.parametrize("program", REQUESTS)
def test_every_field_of_a_request_has_an_option(program: str) -> None:
    command, request, arguments = REQUESTS[program]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    names = [field.name for field in msgspec.structs.fields(request) if field.name not in arguments]
    assert names
    for name in names:
        assert with_options(f"`{name}`", program) in options
