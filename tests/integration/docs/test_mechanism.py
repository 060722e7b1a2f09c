"""What runs the pages sees a wrong output, a wrong status, an unknown option and a broken block."""

from pathlib import Path

import click
import pytest

from fixtures.docs.blocks import PageError, blocks_of, comparable, with_outputs
from fixtures.docs.pages import anchors, check_command_line, links, mentioned_options, prose
from fixtures.docs.runs import Difference, Runner

_PAGE = """# A page

```console
$ planner hardware show nothing
$ echo two \\
    words
```
"""


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def _refreshed(text: str, runner: Runner) -> str:
    return with_outputs(text, list(runner.contents(text)))


def test_an_output_is_written_into_its_block(runner: Runner) -> None:
    page = "a\n\n```console\n$ echo one \\\n    two\nold\nlines\n$ printf 'three\\n'\n```\n\nz\n"
    expected = "a\n\n```console\n$ echo one \\\n    two\none two\n$ printf 'three\\n'\nthree\n```\n\nz\n"
    assert _refreshed(page, runner) == expected
    assert _refreshed(expected, runner) == expected


def test_what_varies_stays_as_it_was_and_all_else_is_written(runner: Runner) -> None:
    page = "```console varies=times\n$ echo 12.5 s for 3 files\n{}\n```\n"
    same = page.format("7.25 ms for 3 files")
    assert _refreshed(same, runner) == same
    assert _refreshed(page.format("7.25 ms for 4 files"), runner) == page.format("12.5 s for 3 files")


@pytest.mark.parametrize(
    "block",
    [
        "console\n$ false",
        "console status=1\n$ false\n$ true",
        "console\n$ false | cat",
    ],
)
def test_a_status_that_is_not_announced_is_an_error(block: str, runner: Runner) -> None:
    with pytest.raises(Difference, match="exit status"):
        list(runner.contents(f"```{block}\n```"))


def test_an_announced_status_and_a_pipe_that_head_closes_are_none(runner: Runner) -> None:
    page = "```console status=3\n$ planner hardware show t5\n```"
    assert _refreshed(page, runner).count("planner: ") == 1
    page = "```console\n$ planner hardware list | head -n 2\n```"
    assert len(_refreshed(page, runner).split("\n")) == 5


def test_planner_prints_the_same_in_this_process_and_in_one_of_its_own(runner: Runner) -> None:
    page = "```console\n$ planner plan --model gpt2 --hardware t4{}\n```"
    here, there = (_refreshed(page.format(end), runner) for end in ("", " | cat"))
    assert here == there.replace(" | cat", "")
    assert "tokens/s" in here


def test_python_is_run_and_its_output_compared(runner: Runner) -> None:
    page = "```python\nfor number in range(2):\n    print(number)\n```\n\n```text output\n7\n```"
    assert _refreshed(page, runner).endswith("```text output\n0\n1\n```")


def test_commands_find_what_they_name(runner: Runner) -> None:
    page = "```console\n$ ls model ds_config.json\n```"
    assert "model.safetensors" in _refreshed(page, runner)


@pytest.mark.parametrize(
    "text", ["```console\n$ ls", "```console\nls\n```", "```console statsu=1\n$ ls\n```"]
)
def test_a_block_that_cannot_be_read_is_an_error(text: str, runner: Runner) -> None:
    with pytest.raises(PageError):
        list(runner.contents(text))


@pytest.mark.parametrize(
    "line",
    [
        "planner plan --model a --hardware b --no-such-option",
        "planner plan --hardware b",
        "planner nonsense",
        "planner hardware list extra",
        "planner plan --model a --hardware b --objective speed",
        "reshard model --format unknown --tp 2",
        "reshard",
        "quantize model --bits 5",
    ],
)
def test_a_wrong_command_line_is_an_error(line: str) -> None:
    with pytest.raises(click.UsageError):
        check_command_line(line, is_whole=True)


@pytest.mark.parametrize(
    "line", ["planner plan --model a --hardware b  # words", "reshard x --tp 2,4", "ls --what"]
)
def test_a_right_command_line_is_none(line: str) -> None:
    check_command_line(line, is_whole=True)


def test_prose_is_what_is_outside_of_blocks() -> None:
    page = (
        "## A *b*, `c`: d\n```console\n$ ls `--inside` [x](y)\n```\nsee `--outside 3` [here](there.md#part)\n"
    )
    assert "inside" not in prose(page)
    assert mentioned_options(page) == {"--outside"}
    assert links(page) == ["there.md#part"]
    assert anchors(page) == {"a-b-c-d"}


def test_comparable_keeps_numbers_that_do_not_vary() -> None:
    assert comparable(["3 files, 2.5 s"], ["times"]) == comparable(["3  files, 17 min 2 s"], ["times"])
    assert comparable(["3 files, 2.5 s"], ["times"]) != comparable(["4 files, 2.5 s"], ["times"])
    assert comparable(["2.5 s"], []) != comparable(["2.6 s"], [])


def test_blocks_know_their_lines() -> None:
    (block,) = blocks_of(_PAGE)
    assert (block.first, block.end) == (3, 6)
    assert [step.command for step in block.steps()] == ["planner hardware show nothing", "echo two words"]
