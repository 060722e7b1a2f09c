"""The `reshard` command in this process, and a checkpoint for it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cli.program import run_program
from cli.reshard import command
from tests.integration.reshard.variants import VARIANTS, save

VARIANT = VARIANTS["llama-kv2"]


class Ran(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """Runs the command in this process, with room for what the process has loaded already."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Ran:
        words = [*map(str, arguments)]
        if "--memory" not in words:
            words += ["--memory", "4GiB"]
        self.capsys.readouterr()
        status = run_program(command, "reshard", words)
        return Ran(status, *self.capsys.readouterr())


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    save(VARIANT, folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """The checkpoint under a name of its own: outputs go beside it."""
    folder = tmp_path / "model"
    folder.symlink_to(saved)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
