"""Man pages: one for every command, with every option, rendered without a warning."""

import os
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from fixtures.man_pages import contexts, file_name, write_man_pages

_CONTEXTS = {file_name(context): context for context in contexts()}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    write_man_pages(folder)
    return folder


def _rendered(page: Path) -> str:
    """The page as text without bold letters; a warning of the renderer fails the test."""
    environment = os.environ | {
        "MANWIDTH": "100",
        "MANPAGER": "cat",
        "LC_ALL": "C.UTF-8",
        "MAN_KEEP_FORMATTING": "",
    }
    if shutil.which("man") and shutil.which("groff"):
        command = ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(page)]
    elif shutil.which("groff"):
        command = ["groff", "-k", "-man", "-Tutf8", "-P-cbou", "-ww", "-rLL=100n", str(page)]
    elif shutil.which("mandoc"):
        command = ["mandoc", "-Tutf8", "-Wwarning", "-Owidth=100", str(page)]
    else:
        pytest.skip("neither man with groff nor mandoc is installed")
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    return " ".join(ran.stdout.replace("‐\n", "").split())


def _options(context: click.Context) -> list[str]:
    return [o for p in context.command.get_params(context) if isinstance(p, click.Option) for o in p.opts]


def test_every_command_has_a_page(pages: Path) -> None:
    assert {page.name for page in pages.iterdir()} == set(_CONTEXTS)
    assert {"planner.1", "planner-plan.1", "planner-hardware-list.1", "reshard.1", "quantize.1"} <= set(
        _CONTEXTS
    )


@pytest.mark.parametrize("name", _CONTEXTS)
def test_a_page_has_its_sections_and_every_option(name: str, pages: Path) -> None:
    lines = (pages / name).read_text().splitlines()
    assert lines[0].startswith(f'.TH "{_CONTEXTS[name].command_path.upper()}" "1"')
    assert [line for line in lines if line.startswith(".SH")][:3] == [
        ".SH NAME",
        ".SH SYNOPSIS",
        ".SH DESCRIPTION",
    ]
    text = "\n".join(lines).replace(r"\-", "-").replace(r"\fB", "").replace(r"\fP", "")
    options = _options(_CONTEXTS[name])
    assert "--help" in options
    assert [option for option in options if option not in text] == []


@pytest.mark.parametrize("name", _CONTEXTS)
def test_a_page_renders_without_a_warning(name: str, pages: Path) -> None:
    text = _rendered(pages / name)
    help_text = _CONTEXTS[name].command.help or ""
    assert " ".join(help_text.splitlines()[0].split()) in text
    assert [option for option in _options(_CONTEXTS[name]) if option not in text] == []
