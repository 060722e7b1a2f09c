"""The `planner` command: a group that imports a command when it is called."""

import importlib
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from .options import version_option
from .program import run_program
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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The commands from the table: click's own list imports every command to see whether it is hidden."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=COMMANDS[name].summary) for name in names), *options]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings=_HELP)
@click.option("--debug", is_flag=True, expose_value=False, help="Print the traceback of an error.")
@version_option("planner")
def group() -> None:
    """Plan where a model's weights and KV cache are placed on a machine, and verify the plan by generating.

    Exit status: 0 success; 1 nothing fits, or verification failed; 2 wrong command line; 3 bad input;
    4 runtime failure.
    """


def run(arguments: Sequence[str]) -> int:
    """Run `planner` with `arguments`; see `cli.program.run_program`."""
    return run_program(group, "planner", arguments)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))
