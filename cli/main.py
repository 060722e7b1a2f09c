"""The `planner` command: a lazy group, and the one place where an error becomes a sentence and a status."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from .exit_codes import ExitCode, exit_code, is_foreseen
from .registry import COMMANDS

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(entry.module, __package__).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            known = ", ".join(sorted(COMMANDS))
            raise click.UsageError(f"There is no command {args[0]!r}; there are {known}.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version  # half of the start-up time of `--help`

    try:
        click.echo(f"planner {version('offload-planner')}")
    except PackageNotFoundError:
        click.echo("planner (not installed)")
    ctx.exit()


@click.group(cls=_LazyGroup, context_settings=_HELP)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version.",
)
def group() -> None:
    """Say where every weight and KV cache of a model should live, and prove it by generating.

    Exit status: 0 done; 1 nothing fits, or verification failed; 2 usage; 3 bad input; 4 runtime failure.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments` (without the program's name) and return the exit status.

    Every failure ends here: a sentence on standard error and, with `--json`, an object
    `{"error": {"type", "message", "exit_code", …}}` on standard output. No traceback without `--debug`.
    """
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json, debug = "--json" in options, "--debug" in options
    try:
        # Not `group.main`: it would turn a broken pipe and an interrupt into statuses of its own.
        with group.make_context("planner", list(arguments)) as context:
            result = group.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return _report(KeyboardInterrupt(), "Interrupted.", ExitCode.INTERRUPTED, as_json=as_json)
    except click.ClickException as error:
        return _report_usage(error, as_json=as_json)
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return _report(error, _sentence(error, debug=debug), exit_code(error), as_json=as_json)
    return result if isinstance(result, int) else ExitCode.OK


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def _sentence(error: BaseException, *, debug: bool) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    if is_foreseen(error):
        return str(error)
    advice = "" if debug else " Run again with --debug for the traceback."
    return f"Unexpected {type(error).__name__}: {error}. This is a defect of the planner.{advice}"


def _report_usage(error: click.ClickException, *, as_json: bool) -> int:
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None and not as_json:
        click.echo(context.get_usage(), err=True)
    hint = f" See: {context.command_path} --help" if context is not None else ""
    return _report(error, error.format_message() + hint, ExitCode.USAGE, as_json=as_json)


def _report(error: BaseException, sentence: str, code: ExitCode, *, as_json: bool) -> int:
    click.echo(f"planner: {sentence}", err=True)
    if as_json:
        details: dict[str, Any] = {"type": type(error).__name__, "message": sentence, "exit_code": int(code)}
        for name in ("device", "deficit_bytes"):
            if hasattr(error, name):
                details[name] = getattr(error, name)
        click.echo(json.dumps({"error": details}))
    return code
