"""What all programs do: run a click command, and turn an error into a sentence and a status."""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from planner.errors import PlannerError

from .completion import complete
from .exit_codes import ExitCode, exit_code, is_foreseen
from .flags import with_options
from .termination import Terminated, terminable


def run_program(command: click.Command, name: str, arguments: Sequence[str]) -> int:
    """Run `command`, called `name`, with `arguments` and return the exit status; or complete for the shell.

    Every failure ends here: a sentence on standard error and, with `--json`, an object
    `{"error": {"type", "message", "exit_code", …}}` on standard output, unless the command has printed its
    result there (see `after_json`). No traceback without `--debug`.
    """
    status = complete(command, name)
    if status is not None:
        return status
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json, debug = "--json" in options, "--debug" in options
    try:
        # Not `command.main`: it would turn a broken pipe and an interrupt into statuses of its own.
        with terminable(), command.make_context(name, list(arguments)) as context:
            result = command.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return _report(name, KeyboardInterrupt(), "Interrupted.", ExitCode.INTERRUPTED, as_json=as_json)
    except click.ClickException as error:
        return _report_usage(name, error, as_json=as_json)
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return _report(name, error, _sentence(name, error, debug=debug), exit_code(error), as_json=as_json)
    return result if isinstance(result, int) else ExitCode.OK


def after_json(error: PlannerError) -> int:
    """Report an error once a command has printed its result as JSON, which stays the only document.

    Returns:
        The status for the command to return.
    """
    click.echo(f"planner: {with_options(str(error), 'planner')}", err=True)
    return exit_code(error)


def _sentence(name: str, error: BaseException, *, debug: bool) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Terminated." if isinstance(error, Terminated) else "Interrupted."
    if is_foreseen(error):
        return with_options(str(error), name)
    advice = "" if debug else " Run again with --debug for the traceback."
    return f"Unexpected {type(error).__name__}: {error}. This is a defect of {name}.{advice}"


def _report_usage(name: str, error: click.ClickException, *, as_json: bool) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return _report_no_command(name, error, as_json=as_json)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None and not as_json:
        click.echo(context.get_usage(), err=True)
    hint = f" See: {context.command_path} --help" if context is not None else ""
    return _report(name, error, error.format_message() + hint, ExitCode.USAGE, as_json=as_json)


def _report_no_command(name: str, error: click.UsageError, *, as_json: bool) -> int:
    """A group without a subcommand shows its help, whose first line is the usage already."""
    path = error.ctx.command_path if error.ctx is not None else name
    if not as_json:
        click.echo(error.format_message(), err=True)
    sentence = f"{path} needs a command. See: {path} --help"
    return _report(name, error, sentence, ExitCode.USAGE, as_json=as_json)


def _report(name: str, error: BaseException, sentence: str, code: ExitCode, *, as_json: bool) -> int:
    click.echo(f"{name}: {sentence}", err=True)
    if as_json:
        details: dict[str, Any] = {"type": type(error).__name__, "message": sentence, "exit_code": int(code)}
        for detail in ("device", "deficit_bytes"):
            if hasattr(error, detail):
                details[detail] = getattr(error, detail)
        click.echo(json.dumps({"error": details}))
    return code
