"""Options that every command or every program has."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., object])


def output_options(command: _Command) -> _Command:
    """Add `--json`, passed as `as_json`, and `--debug`, which `cli.program` reads for itself."""
    command = click.option(
        "--debug", is_flag=True, expose_value=False, help="Print the traceback of an error."
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def version_option(program: str) -> Callable[[_Command], _Command]:
    """Add `--version`, which prints the version of `program` and ends it."""

    def show(context: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
        if not is_given or context.resilient_parsing:
            return
        # Imported here because it takes half of the start-up time of `--help`.
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"{program} {version('offload-planner')}")
        except PackageNotFoundError:
            click.echo(f"{program} (not installed)")
        context.exit()

    return click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version and exit.",
    )


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
