"""The table of commands and the folder of commands say the same."""

import importlib
import pkgutil

import click
import pytest

from cli import commands
from cli.registry import COMMANDS
from fixtures.man_pages import contexts


def test_every_module_is_registered_once() -> None:
    modules = sorted(f".commands.{module.name}" for module in pkgutil.iter_modules(commands.__path__))
    assert sorted(entry.module for entry in COMMANDS.values()) == modules


@pytest.mark.parametrize("name", COMMANDS)
def test_the_entry_describes_the_command(name: str) -> None:
    entry = COMMANDS[name]
    command = importlib.import_module(entry.module, "cli").command
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help is not None
    assert command.help.splitlines()[0] == entry.summary


def _leaves(command: click.Command) -> list[click.Command]:
    if isinstance(command, click.Group):
        return [leaf for child in command.commands.values() for leaf in _leaves(child)]
    return [command]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_debug(name: str) -> None:
    for leaf in _leaves(importlib.import_module(COMMANDS[name].module, "cli").command):
        options = {option for parameter in leaf.params for option in parameter.opts}
        assert {"--json", "--debug"} <= options, leaf.name


@pytest.mark.parametrize("context", list(contexts()), ids=lambda context: context.command_path)
def test_every_option_has_a_help_text(context: click.Context) -> None:
    options = (p for p in context.command.get_params(context) if isinstance(p, click.Option))
    assert [option.name for option in options if not (option.help or "").rstrip("]").strip()] == []
