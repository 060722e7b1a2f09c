"""Between the options of `quantize` and the fields of a `quantize.Request`, which messages name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from reshard.errors import CheckpointError

if TYPE_CHECKING:
    from quantize import Request

#: Field → option, where it is not the same word with dashes.
_FLAGS: Final = {"tp_size": "--tp", "memory_bytes": "--memory", "max_shard_bytes": "--max-shard-size"}
_FIELDS: Final = (
    "output", "format", "scheme", "bits", "group_size", "group_dim", "groups", "mlp_extra_grouping",
    "activations", "tp_size", "include", "exclude", "allow_nonfinite", "memory_bytes", "jobs",
    "max_shard_bytes", "overwrite", "dequantize",
)  # fmt: skip
_MENTION: Final = re.compile(rf"`({'|'.join(_FIELDS)})(?:=([^`]*))?`")


def request_from(options: dict[str, Any]) -> "Request":
    """The request that a command line makes."""
    from quantize import Request

    group_size, group_dim = options["group_size"], options["group_dim"]
    return Request(
        checkpoint=options["checkpoint"],
        output=options["output"],
        format=options["format_name"],
        scheme=options["scheme"],
        bits=int(options["bits"]),
        group_size="row" if group_size == 0 else group_size,
        group_dim=None if group_dim is None else int(group_dim),
        groups=options["groups"],
        mlp_extra_grouping=options["mlp_extra_grouping"],
        activations=options["activations"],
        tp_size=options["tp"],
        include=options["include"],
        exclude=options["exclude"],
        allow_nonfinite=options["allow_nonfinite"],
        memory_bytes=options["memory"],
        jobs=options["jobs"],
        max_shard_bytes=options["max_shard_size"],
        overwrite=options["overwrite"],
    )


def with_flags(sentence: str) -> str:
    """A sentence of the library with its fields, such as `group_size=64` in backticks, as options."""
    return _MENTION.sub(_flag, sentence)


def _flag(mention: re.Match[str]) -> str:
    field, value = mention[1], mention[2]
    flag = _FLAGS.get(field, f"--{field.replace('_', '-')}")
    if value is None:
        return flag
    # A shell would expand a pattern that stands without quotes.
    bare = value.strip("'")
    return f"{flag} {value if '*' in value else bare}"


@contextmanager
def flags_in_errors() -> Iterator[None]:
    """Errors of the library in the command line's words; a request that makes no sense is a usage error.

    Raises:
        UsageError: fields do not go together.
    """
    from quantize.errors import InvalidRequestError

    try:
        yield
    except InvalidRequestError as error:
        raise click.UsageError(f"{with_flags(str(error))}.") from error
    except CheckpointError as error:
        error.args = tuple(with_flags(part) if isinstance(part, str) else part for part in error.args)
        raise
