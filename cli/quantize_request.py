"""A command line of `quantize` as a `quantize.Request`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .flags import with_options

if TYPE_CHECKING:
    from quantize import Request


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


@contextmanager
def usage_errors() -> Iterator[None]:
    """A request that makes no sense is a usage error, in the command line's words.

    Raises:
        UsageError: fields do not go together.
    """
    from quantize.errors import InvalidRequestError

    try:
        yield
    except InvalidRequestError as error:
        raise click.UsageError(f"{with_options(str(error), 'quantize')}.") from error
