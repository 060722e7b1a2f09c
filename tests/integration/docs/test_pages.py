"""What the pages say is true: commands are run, outputs compared, options and links looked up."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest

from cli.registry import COMMANDS
from fixtures.docs.blocks import Block, blocks_of, comparable
from fixtures.docs.pages import (
    PAGES,
    anchors,
    check_command_line,
    known_options,
    links,
    mentioned_options,
    spans,
)
from fixtures.docs.runs import Runner

_TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
_MAX_README_LINES = 120

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("docs"))


def _console(page: Path) -> Iterator[Block]:
    return (block for block in blocks_of(_TEXTS[page]) if block.language == "console")


@every_page
def test_commands_print_what_the_page_says(page: Path, runner: Runner) -> None:
    for block, content in runner.contents(_TEXTS[page]):
        shown, printed = (comparable(lines, block.varies) for lines in (block.lines, content))
        assert printed == shown, f"{page.name}, line {block.first}: `make docs` writes what is printed"


@every_page
def test_commands_that_are_not_run_have_a_reason_and_no_output(page: Path) -> None:
    for block in _console(page):
        if block.tag.startswith("no-run"):
            assert block.reason_not_to_run, f"line {block.first}"
            assert [step.command for step in block.steps() if step.output] == []


@every_page
def test_command_lines_and_their_options_exist(page: Path, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    for block in _console(page):
        for step in block.steps():
            line = re.split(r"\s\||\s\d?>", step.command)[0]
            check_command_line(line, is_whole=True)
            words = shlex.split(line, comments=True)
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line


@every_page
def test_sentences_name_commands_and_options_that_exist(page: Path) -> None:
    assert mentioned_options(_TEXTS[page]) <= known_options()
    for span in spans(_TEXTS[page]):
        if span.split(" ")[0] in ("planner", "reshard", "quantize"):
            check_command_line(span, is_whole=False)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(_TEXTS[page]):
        if urlparse(link).scheme:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@every_page
def test_files_of_results_exist(page: Path, repository: Path) -> None:
    results = repository / "tests" / "benchmarks"
    for span in spans(_TEXTS[page]):
        if re.fullmatch(r"(tests/benchmarks/\S*|\d{4}-\d\d-\d\d-[\w.-]+)", span):
            assert (repository / span).exists() or (results / "results" / span).exists(), span


def test_every_page_is_linked_from_the_index(repository: Path) -> None:
    index = repository / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(_TEXTS[index])}
    assert linked == set(PAGES) - {index, repository / "README.md"}


def test_the_readme_is_short(repository: Path) -> None:
    assert len(_TEXTS[repository / "README.md"].splitlines()) <= _MAX_README_LINES


def test_every_command_is_documented() -> None:
    text = "\n".join(_TEXTS.values())
    assert [name for name in COMMANDS if f"planner {name}" not in text] == []
