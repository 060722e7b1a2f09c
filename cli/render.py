"""Tables, facts and bars on standard output; readable at 80 columns, and without colour in a pipe."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

#: Fill characters and colours of a bar's parts, in order. The characters alone must tell them apart.
_FILLS: Final = (
    ("█", "blue"),
    ("▓", "green"),
    ("▒", "yellow"),
    ("░", "magenta"),
    ("#", "cyan"),
    ("+", "red"),
)
_ASCII_FILLS: Final = "#@%=+:"


class Column(NamedTuple):
    """A table's column: its heading, whether it holds numbers, and whether its cells may break."""

    title: str
    is_number: bool = False
    wraps: bool = False


class Bar(NamedTuple):
    """One stacked bar: `parts` (label → amount) fill it up to `capacity`; `caption` stands beside it."""

    label: str
    parts: Mapping[str, float]
    capacity: float
    caption: str


def show_json(value: Any) -> None:
    """Print `value` (structs, dataclasses, paths, containers) as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=_encode_path), indent=2))


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"cannot print a {type(value).__name__} as JSON")


def show_text(*paragraphs: str) -> None:
    """Print sentences, wrapped to the terminal."""
    for paragraph in paragraphs:
        _print(_console(), Text(paragraph))


def show_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table; a cell that may not break is cut with an ellipsis only when nothing else helps."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=title or None, title_justify="left"
    )
    table.title_style = "bold"
    for column in columns:
        table.add_column(
            # A heading of words is narrower than the column it would otherwise squeeze.
            column.title.replace(" ", "\n") if column.is_number else column.title,
            justify="right" if column.is_number else "left",
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
            min_width=10 if column.wraps else None,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _print(_console(), table)


def show_facts(facts: Iterable[tuple[str, str]], *, title: str = "") -> None:
    """Print labelled values, one to a line."""
    console = _console()
    if title:
        _print(console, Text(title, style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(Text(label), Text(value))
    _print(console, Padding(grid, (0, 0, 0, 2)))


def show_bars(bars: Sequence[Bar]) -> None:
    """Print stacked bars, each as long as its capacity, and a legend of the parts that occur."""
    console = _console()
    # Parts keep their fill whether or not the others occur, so that two plans can be compared at a glance.
    fills = dict(
        zip(dict.fromkeys(name for bar in bars for name in bar.parts), _fills(console), strict=False)
    )
    labels = [name for name in fills if any(bar.parts.get(name, 0) > 0 for bar in bars)]
    label_width = max((len(bar.label) for bar in bars), default=0)
    caption_width = max((len(bar.caption) for bar in bars), default=0)
    width = max(10, min(60, console.width - label_width - caption_width - 6))
    for bar in bars:
        line = Text(f"  {bar.label:<{label_width}} ")
        line.append_text(_filled(bar, fills, width))
        line.append(f" {bar.caption}")
        line.no_wrap, line.overflow = True, "ellipsis"
        _print(console, line)
    legend = Text("  " + " " * label_width)
    for name in labels:
        character, colour = fills[name]
        legend.append(" ").append(character, style=colour).append(f" {name} ")
    _print(console, legend)


def _filled(bar: Bar, fills: Mapping[str, tuple[str, str]], width: int) -> Text:
    """The bar itself. Ends are rounded, not lengths, so that rounding never adds up; too much is cut."""
    line, done, at = Text(), 0.0, 0
    capacity = max(bar.capacity, sum(bar.parts.values()), 1e-9)
    for name, amount in bar.parts.items():
        if amount <= 0:
            continue
        done += amount
        end = min(width, round(width * done / capacity))
        character, colour = fills[name]
        line.append(character * (end - at), style=colour)
        at = end
    return line.append("." * (width - at), style="dim")


def _fills(console: Console) -> Iterable[tuple[str, str]]:
    encodable = (console.encoding or "").lower().startswith("utf")
    if encodable:
        return _FILLS
    return tuple((plain, colour) for plain, (_, colour) in zip(_ASCII_FILLS, _FILLS, strict=True))


def _print(console: Console, renderable: RenderableType) -> None:
    """Print, without the blanks that fill lines up to the width when nobody looks at a screen."""
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as capture:
        console.print(renderable)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def _console() -> Console:
    # Made for every use: click's test runner replaces standard output, and so may a caller.
    return Console(file=sys.stdout, highlight=False, emoji=False)
