"""The command as a process: what it imports, how it ends, what it prints into a pipe."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

_HEAVY = ("torch", "transformers", "accelerate", "networkx", "numpy", "matplotlib", "highspy", "rich")


def _planner(*arguments: str, repository: Path, **kwargs: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        **kwargs,  # type: ignore[call-overload, no-any-return]
    )


@pytest.mark.parametrize(
    "arguments, allowed",
    [
        (["--help"], set()),
        (["--version"], set()),
        (["hardware", "list"], {"rich"}),
        (["hardware", "show", "8xa100-80g", "--json"], {"rich"}),
        (["models", "list"], {"rich"}),
        (["models", "show", "gpt-j-6b"], {"rich"}),
    ],
)
def test_imports_nothing_heavy(arguments: list[str], allowed: set[str], repository: Path) -> None:
    program = (
        "import sys, cli.main\n"
        f"code = cli.main.run({arguments!r})\n"
        f"print([m for m in {_HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert set(eval(ran.stderr.splitlines()[-1])) <= allowed


@pytest.mark.parametrize(
    "arguments", [["hardware", "list"], ["hardware", "show", "p4d.24xlarge"], ["models", "list"]]
)
def test_fits_eighty_columns_in_a_pipe(arguments: list[str], repository: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    ran = _planner(*arguments, repository=repository, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert "\x1b" not in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert "…" not in ran.stdout


@pytest.mark.parametrize(
    "arguments",
    [["hardware", "list"], ["hardware", "show", "t4"], ["models", "list"], ["models", "show", "gpt2"]],
)
def test_json_is_json(arguments: list[str], repository: Path) -> None:
    ran = _planner(*arguments, "--json", repository=repository)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["hardware", "show", "v100-17g"], "v100-16g"),
        (["models", "show", "gpt-j-7b"], "gpt-j-6b"),
        (["models", "show", "./nowhere"], "nowhere"),
    ],
)
def test_unknown_names_are_bad_input(arguments: list[str], part: str, repository: Path) -> None:
    ran = _planner(*arguments, repository=repository)
    assert ran.returncode == 3
    assert part in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_closed_pipe_is_no_error(repository: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        ran = subprocess.run(
            [sys.executable, "-m", "cli", "hardware", "list"],
            cwd=repository,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ran.returncode == 141
    assert ran.stderr == ""


def test_the_automatic_map_of_gpus_that_are_not_here_is_no_warning(repository: Path) -> None:
    words = ("predict", "--hardware", "4xt4", "--model", "gpt2", "--device-map", "auto", "--json")
    ran = _planner(*words, repository=repository)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["model"]["name"] == "gpt2"


@pytest.mark.parametrize(
    "program, module", [("planner", "main"), ("reshard", "reshard"), ("quantize", "quantize")]
)
def test_every_program_says_its_version_and_imports_no_framework(
    program: str, module: str, repository: Path
) -> None:
    code = (
        f"import sys, cli.{module} as program\n"
        "sys.argv = ['x', '--version']\n"
        "try:\n    program.main()\nfinally:\n"
        f"    print([m for m in {_HEAVY[:-1]!r} if m in sys.modules], file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "[]\n")
    assert ran.stdout == f"{program} {version('offload-planner')}\n"
