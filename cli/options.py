"""Options that every command has."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., object])


def output_options(command: _Command) -> _Command:
    """Add `--json`, passed as `as_json`, and `--debug`, which `cli.main` reads for itself."""
    command = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def rows_option(help_text: str, *, required: bool = False) -> Callable[[_Command], _Command]:
    """Add `--rows`, files of `planner bench`, passed as `row_files`."""
    return click.option(
        "--rows",
        "row_files",
        multiple=True,
        required=required,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help=help_text,
    )


def make_room_for(out: Path) -> None:
    """Make the folder of a file that a long command will write, and see that it can be written there.

    Raises:
        OSError: it cannot.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out.parent).close()
