"""Kinds of values that several programs take on their command lines."""

import click

from planner.errors import InvalidInputError
from planner.sizes import parse_bytes


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """A number of bytes, as in `512MiB`."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_bytes(str(value))
        except (InvalidInputError, ValueError) as error:
            self.fail(str(error), param, ctx)
