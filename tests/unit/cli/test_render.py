"""What is printed fits 80 columns, has no colour codes in a pipe, and tells a bar's parts apart."""

from pathlib import Path

import pytest

from cli.render import Bar, Column, show_bars, show_facts, show_json, show_table, show_text


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    output = capsys.readouterr().out
    assert "\x1b" not in output
    lines = output.splitlines()
    assert all(len(line) <= 80 for line in lines), output
    assert all(line == line.rstrip() for line in lines), output
    return lines


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def test_table_aligns_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    show_table((Column("name"), Column("size", is_number=True)), [("a", "5"), ("bb", "12345")])
    rows = [line for line in _lines(capsys) if line.strip()][-2:]
    assert len(rows[0]) == len(rows[1])
    assert rows[0].split() == ["a", "5"]


def test_long_cells_break_and_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    note = "where the number comes from, at length; " * 6
    show_table((Column("quantity"), Column("note", wraps=True)), [("gpu.memory_bytes", note)])
    text = " ".join(" ".join(_lines(capsys)).split())
    assert text.replace("gpu.memory_bytes ", "").endswith(note.strip())


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_table((Column("a"),), [("[bold]x[/bold]",)])
    show_text("[red]y[/red] :smile:")
    output = "\n".join(_lines(capsys))
    assert "[bold]x[/bold]" in output
    assert "[red]y[/red] :smile:" in output


def test_facts_are_indented_under_their_title(capsys: pytest.CaptureFixture[str]) -> None:
    show_facts([("class", "GPTJForCausalLM"), ("parameters", "6")], title="gpt-j-6b")
    assert _lines(capsys) == ["gpt-j-6b", "  class       GPTJForCausalLM", "  parameters  6"]


def test_bar_is_in_proportion(capsys: pytest.CaptureFixture[str]) -> None:
    # 80 − 3 label − 8 caption − 6 = 63, capped at 60 characters for 60 bytes.
    show_bars([Bar("cpu", {"weights": 30, "kv": 12, "staging": 0}, 60, "42 of 60")])
    bar, legend = _lines(capsys)
    assert bar == "  cpu " + "█" * 30 + "▓" * 12 + "." * 18 + " 42 of 60"
    assert "█ weights" in legend
    assert "▓ kv" in legend
    assert "staging" not in legend


def test_too_much_fills_the_bar_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    show_bars([Bar("gpu:0", {"weights": 90, "kv": 30}, 60, "120 of 60")])
    bar = _lines(capsys)[0]
    assert "." not in bar
    assert bar.count("█") == 3 * bar.count("▓")


def test_many_small_parts_do_not_lengthen_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    parts = dict.fromkeys("abcdef", 1.0)
    show_bars([Bar("x", parts, 1000, ""), Bar("y", parts, 6, "")])
    first, second, _ = _lines(capsys)
    assert first.count(".") >= 59
    assert len(second) == len(first.rstrip())


def test_ascii_streams_get_ascii_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show_bars([Bar("cpu", {"weights": 30, "kv": 30}, 60, "full")])
    sys.stdout.flush()
    assert b"#" * 30 + b"@" * 30 in raw.getvalue()


def test_json_is_indented(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": [Path("b")]})
    assert capsys.readouterr().out == '{\n  "a": [\n    "b"\n  ]\n}\n'
