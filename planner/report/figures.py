"""The pictures of a report, drawn by matplotlib (the `plot` extra)."""

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from planner.errors import InvalidInputError
from planner.report.timeline import LANES, BatchPoint, Span
from planner.schema.breakdown import MemoryBreakdown, worst_by_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

_PARTS: Final = ("weights", "kv", "activations", "staging", "context", "slack")
#: Okabe and Ito's colours, which stay apart for every kind of colour vision.
_COLOURS: Final = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#999999")
_GIB: Final = 2**30
_WIDTH_INCHES: Final = 8.0
#: Digits that fit below one of two pictures side by side.
_LABEL_DIGITS: Final = 40
_SEVERAL_DECADES: Final = 200
_ONE_DECADE: Final = 8


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


def timeline_picture(spans: Sequence[Span], title: str) -> Picture:
    """One step as it passes: a line for each kind of work that there is."""
    colours = dict(zip(LANES, _COLOURS, strict=False))
    lanes = [lane for lane in LANES if any(span.lane == lane for span in spans)]
    unit, per_s = _time_unit(max((span.start_s + span.seconds for span in spans), default=0.0))

    def draw(figure: "FigureBase") -> None:
        axes: Any = figure.subplots()
        for index, lane in enumerate(lanes):
            bars = [(per_s * s.start_s, per_s * s.seconds) for s in spans if s.lane == lane]
            looks = {"facecolors": colours[lane], "edgecolors": colours[lane], "linewidth": 0.4}
            axes.broken_barh(bars, (index - 0.4, 0.8), **looks)
        axes.set_yticks(range(len(lanes)), lanes)
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(unit)
        axes.spines[["top", "right"]].set_visible(False)

    return Picture(title, 1.1 + 0.25 * len(lanes), draw)


def _time_unit(longest_s: float) -> tuple[str, float]:
    """The unit in which a time is a small number, and how many of it a second has."""
    if longest_s >= 1:
        return "seconds", 1.0
    return ("milliseconds", 1e3) if longest_s >= 1e-3 else ("microseconds", 1e6)


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
            axes.set_xticks(sizes, batch_labels(sizes, chosen))
            axes.minorticks_off()
            plain_ticks(axes.yaxis, max(values) / min(values))
            axes.set_xlabel("batch")
            axes.set_title(title, fontsize=9)
            axes.grid(visible=True, which="major", linewidth=0.3)
        left.legend(frameon=False, fontsize=8)

    return Picture("Other batch sizes, run in the same way", 3.0, draw)


def batch_labels(sizes: Sequence[int], chosen: int) -> list[str]:
    """A label for each tick, empty where it would touch another; the chosen batch always has its own.

    Args:
        sizes: ascending; ticks stand at their logarithms.
        chosen: one of them.
    """
    across = max(1.0, math.log2(sizes[-1] / sizes[0]))
    shown = [chosen]
    for size in reversed(sizes):
        room = [abs(math.log2(size / other)) / across * _LABEL_DIGITS for other in shown]
        wide = [(len(str(size)) + len(str(other))) / 2 + 1 for other in shown]
        if all(has >= needs for has, needs in zip(room, wide, strict=True)):
            shown.append(size)
    return [str(size) if size in shown else "" for size in sizes]


def plain_ticks(axis: Any, ratio: float) -> None:
    """Plain numbers on a logarithmic axis, never fewer than two.

    Args:
        axis: of matplotlib.
        ratio: of the largest value to the smallest: decades are enough where there are several, else 1, 2
            and 5 of each; what spans less than that has ticks at even distances.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if ratio > _SEVERAL_DECADES:
        axis.set_major_locator(LogLocator(subs=(1.0,)))
    elif ratio > _ONE_DECADE:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        axis.set_major_locator(MaxNLocator(nbins=5))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def svg(picture: Picture) -> str:
    """One picture as an SVG element to put into a page."""
    figure = _figure(picture.height_inches)
    picture.draw(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def drawn(pictures: Sequence[Picture], heading: str, suffix: str) -> bytes:
    """All pictures below each other as the contents of one file, `.png` or `.svg`."""
    heights = [picture.height_inches + 0.3 for picture in pictures]
    figure = _figure(sum(heights) + 0.4)
    figure.suptitle(heading, fontsize=9)
    parts: Any = figure.subfigures(len(pictures), 1, squeeze=False, height_ratios=heights)
    for part, picture in zip(parts[:, 0], pictures, strict=True):
        part.suptitle(picture.title, fontsize=10)
        picture.draw(part)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format=suffix.removeprefix("."))
    return buffer.getvalue()


def _figure(height_inches: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError(
            "a report needs matplotlib, which is not installed: pip install matplotlib"
        ) from error
    return Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
