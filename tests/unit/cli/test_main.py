"""The one place where an error becomes a sentence, a status and, on request, JSON."""

import json
from collections.abc import Callable
from typing import Any

import click
import pytest

import cli.main
from cli.commands import hardware
from cli.options import output_options
from planner.errors import InfeasibleError, PlannerError
from planner.hardware.load import UnknownNameError

Raise = Callable[[BaseException], None]


@pytest.fixture
def raises(monkeypatch: pytest.MonkeyPatch) -> Raise:
    """Makes `planner hardware` raise the given error."""

    def arrange(error: BaseException) -> None:
        @click.command()
        @output_options
        def command(as_json: bool) -> None:
            raise error

        monkeypatch.setattr(hardware, "command", command)

    return arrange


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["--help"]) == 0
    output = capsys.readouterr().out
    for name, entry in cli.main.COMMANDS.items():
        assert f"  {name}" in output
        assert entry.summary.split()[0] in output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("planner ")


@pytest.mark.parametrize("arguments", [[], ["hardware"], ["models"]])
def test_a_group_without_a_command_shows_its_help_once(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("Usage:") == 1
    path = " ".join(["planner", *arguments])
    assert err.endswith(f"planner: {path} needs a command. See: {path} --help\n")


def test_a_planner_error_is_a_sentence(raises: Raise, capsys: pytest.CaptureFixture[str]) -> None:
    raises(UnknownNameError("unknown hardware profile 'x'"))
    assert cli.main.run(["hardware"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "planner: unknown hardware profile 'x'\n"


def test_an_infeasible_plan_says_by_how_much(raises: Raise, capsys: pytest.CaptureFixture[str]) -> None:
    raises(InfeasibleError("3 bytes short on gpu:0", device="gpu:0", deficit_bytes=3))
    assert cli.main.run(["hardware", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "error": {
            "type": "InfeasibleError",
            "message": "3 bytes short on gpu:0",
            "exit_code": 1,
            "device": "gpu:0",
            "deficit_bytes": 3,
        }
    }
    assert "3 bytes short" in err


def test_a_defect_advises_debug_and_shows_no_traceback(
    raises: Raise, capsys: pytest.CaptureFixture[str]
) -> None:
    raises(ZeroDivisionError("division by zero"))
    assert cli.main.run(["hardware"]) == 4
    err = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in err
    assert "--debug" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--debug", "hardware"], ["hardware", "--debug"]])
def test_debug_shows_the_traceback(
    raises: Raise, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    raises(PlannerError("no"))
    assert cli.main.run(arguments) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("planner: no\n")


def test_interrupt(raises: Raise, capsys: pytest.CaptureFixture[str]) -> None:
    raises(KeyboardInterrupt())
    assert cli.main.run(["hardware"]) == 130
    assert capsys.readouterr().err.endswith("planner: Interrupted.\n")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["nonsense"], "no command 'nonsense'"),
        (["hardware", "nonsense"], "nonsense"),
        (["hardware", "show"], "NAME"),
        (["graph"], "--model"),
        (["hardware", "list", "--nonsense"], "--nonsense"),
    ],
)
def test_usage(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(arguments) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert "Usage: planner" in err
    assert "Traceback" not in err


def test_usage_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["nonsense", "--json"]) == 2
    error: dict[str, Any] = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "UsageError"
    assert error["exit_code"] == 2


def test_nothing_said_means_help_and_usage_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run([]) == 2
    assert "Commands:" in "".join(capsys.readouterr())


def test_json_after_the_separator_is_no_option(raises: Raise, capsys: pytest.CaptureFixture[str]) -> None:
    raises(PlannerError("no"))
    cli.main.run(["hardware", "--", "--json"])
    assert capsys.readouterr().out == ""
