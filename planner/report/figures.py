"""The pictures of a report, drawn by matplotlib (the `plot` extra)."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from planner.breakdown import MemoryBreakdown, worst_by_device
from planner.errors import InvalidInputError
from planner.report.course import LANES, BatchPoint, Span

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

_PARTS: Final = ("weights", "kv", "activations", "staging", "context", "slack")
#: Okabe and Ito's colours, which stay apart for every kind of colour vision.
_COLOURS: Final = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#999999")
_GIB: Final = 2**30
_WIDTH_INCHES: Final = 8.0


class Picture(NamedTuple):
    """What is drawn, and how high it wants to be.

    Attributes:
        title: a heading.
        height_inches: of a page 8 inches wide.
        draw: onto a figure, or a part of one.
    """

    title: str
    height_inches: float
    draw: Callable[["FigureBase"], None]


def memory_picture(memory: dict[str, dict[str, MemoryBreakdown]]) -> Picture:
    """Stacked bars: each device at its worse phase, as a share of what it has."""
    rows = worst_by_device(memory)

    def draw(figure: "FigureBase") -> None:
        axes: Any = figure.subplots()
        for index, part in enumerate(rows.values()):
            left = 0.0
            for name, colour in zip(_PARTS, _COLOURS, strict=True):
                width = getattr(part, name) / part.capacity if part.capacity else 0.0
                axes.barh(index, width, left=left, color=colour, label=name if index == 0 else None)
                left += width
            words = f" {part.total / _GIB:.1f} of {part.capacity / _GIB:.1f} GiB"
            axes.text(max(left, 1.0), index, words, va="center", fontsize=8)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "all of it"])
        axes.spines[["top", "right"]].set_visible(False)
        legend = {"ncols": len(_PARTS), "frameon": False, "fontsize": 8}
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), **legend)

    return Picture("Memory at the worst moment", 1.1 + 0.4 * len(rows), draw)


def course_picture(spans: Sequence[Span], title: str) -> Picture:
    """One step as it passes: a line for each kind of work."""

    def draw(figure: "FigureBase") -> None:
        axes: Any = figure.subplots()
        for index, (lane, colour) in enumerate(zip(LANES, _COLOURS, strict=False)):
            bars = [(1e3 * s.start_s, 1e3 * s.seconds) for s in spans if s.lane == lane]
            axes.broken_barh(bars, (index - 0.4, 0.8), facecolors=colour, edgecolors=colour, linewidth=0.4)
        axes.set_yticks(range(len(LANES)), list(LANES))
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds")
        axes.spines[["top", "right"]].set_visible(False)

    return Picture(title, 1.9, draw)


def batch_picture(points: Sequence[BatchPoint], chosen: int) -> Picture:
    """Step time and tokens per second over the batch size; the chosen one marked."""
    sizes = [point.batch_size for point in points]

    def draw(figure: "FigureBase") -> None:
        sides: Any = figure.subplots(1, 2)
        left, right = sides
        for axes, values, title in (
            (left, [point.step_s for point in points], "seconds a step"),
            (right, [point.tokens_per_s for point in points], "tokens per second"),
        ):
            axes.plot(sizes, values, marker="o", markersize=3, color=_COLOURS[0])
            mark = values[sizes.index(chosen)]
            axes.plot([chosen], [mark], marker="o", color=_COLOURS[2], markersize=8, label="chosen")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
            axes.set_xlabel("batch")
            axes.set_title(title, fontsize=9)
            axes.grid(visible=True, which="major", linewidth=0.3)
        left.legend(frameon=False, fontsize=8)

    return Picture("Other batch sizes, run in the same way", 3.0, draw)


def svg(picture: Picture) -> str:
    """One picture as an SVG element to put into a page."""
    figure = _figure(picture.height_inches)
    picture.draw(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save(pictures: Sequence[Picture], heading: str, path: Path) -> None:
    """All pictures below each other in one file, `.png` or `.svg`."""
    heights = [picture.height_inches + 0.3 for picture in pictures]
    figure = _figure(sum(heights) + 0.4)
    figure.suptitle(heading, fontsize=9)
    parts: Any = figure.subfigures(len(pictures), 1, squeeze=False, height_ratios=heights)
    for part, picture in zip(parts[:, 0], pictures, strict=True):
        part.suptitle(picture.title, fontsize=10)
        picture.draw(part)
    figure.savefig(path, dpi=150, format=path.suffix.removeprefix("."))


def _figure(height_inches: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError(
            "a report needs matplotlib, which is not installed: pip install matplotlib"
        ) from error
    return Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
