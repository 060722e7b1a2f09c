"""Shell completion: the scripts for the shells, and the option values that are names.

Functions with the parameters `context`, `parameter` and `incomplete` are click's `shell_complete` callbacks.
They list files and constants only, so that pressing the tabulator key imports no framework.
"""

import os
import re
from collections.abc import Callable, Iterable
from typing import Final

import click
from click.shell_completion import CompletionItem

_Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]

_COUNT: Final = re.compile(r"\d+x")
#: Dtypes in which weights can be loaded.
DTYPES: Final = ("float16", "bfloat16", "float32")


def complete(command: click.Command, name: str) -> int | None:
    """Answer the shell when it asks for completion by the variable `_NAME_COMPLETE`, as click defines it.

    Args:
        command: the program's click command.
        name: the program's name, as it is typed.

    Returns:
        The exit status, or None when the shell did not ask: the program then runs as usual.
    """
    variable = f"_{name.upper()}_COMPLETE"
    instruction = os.environ.get(variable)
    if not instruction:
        return None
    from click.shell_completion import shell_complete

    status = shell_complete(command, {}, name, variable, instruction)
    if status:
        click.echo(
            f"{name}: {variable}={instruction} is unknown; use bash_source, zsh_source or fish_source",
            err=True,
        )
    return status and 2


def names_of(*names: str) -> _Completer:
    """A callback that completes one of `names`."""
    return lambda context, parameter, incomplete: _starting(names, incomplete)


def hardware_profiles(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Names of profiles, after a count such as `8x` as well; files where no name fits."""
    from planner.hardware.load import names

    count = _COUNT.match(incomplete)
    prefix = count[0] if count is not None else ""
    return _starting(names(), incomplete.removeprefix(prefix), prefix=prefix) or _files(incomplete)


def several_hardware_profiles(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The last of several profiles that are separated by commas."""
    done, comma, last = incomplete.rpartition(",")
    items = hardware_profiles(context, parameter, last)
    return [CompletionItem(done + comma + item.value, type=item.type) for item in items]


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Short names of models; folders where no name fits."""
    from planner.models.shipped import shipped_names

    return _starting(shipped_names(), incomplete) or folders(context, parameter, incomplete)


def folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Folders, which the shell lists itself."""
    return [CompletionItem(incomplete, type="dir")]


def device_maps(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """`auto`, or a file."""
    return _starting(("auto",), incomplete) or _files(incomplete)


def _starting(names: Iterable[str], incomplete: str, *, prefix: str = "") -> list[CompletionItem[str]]:
    return [CompletionItem(prefix + name) for name in names if name.startswith(incomplete)]


def _files(incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(incomplete, type="file")]
