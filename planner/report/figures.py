"""The charts of a report, drawn with matplotlib (the `plot` extra)."""

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
#: Colours of Okabe and Ito, which are distinguishable with every kind of colour vision.
_COLOURS: Final = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#999999")
_GIB: Final = 2**30
_WIDTH_INCHES: Final = 8.0
#: Digits that fit below one of two charts side by side.
_LABEL_DIGITS: Final = 40
#: Ratios of the largest to the smallest value from which an axis has ticks at decades, and at 1, 2 and 5.
_SEVERAL_DECADES: Final = 200
_ONE_DECADE: Final = 8


class Picture(NamedTuple):
    """A chart that can be drawn alone or as part of a figure.

    Attributes:
        title: heading.
        height_inches: height on a page that is 8 inches wide.
        draw: draws it on a figure or subfigure.
    """

    title: str
    height_inches: float
    draw: Callable[["FigureBase"], None]


def memory_picture(memory: dict[str, dict[str, MemoryBreakdown]]) -> Picture:
    """Stacked bars of the memory of each device in its worse phase, as a share of its capacity."""
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
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.spines[["top", "right"]].set_visible(False)
        legend = {"ncols": len(_PARTS), "frameon": False, "fontsize": 8}
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), **legend)

    return Picture("Peak memory", 1.1 + 0.4 * len(rows), draw)


def timeline_picture(spans: Sequence[Span], title: str) -> Picture:
    """Timeline of one step, with a line for each kind of work that occurs."""
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
    """A suitable unit for times up to `longest_s`, and its number per second."""
    if longest_s >= 1:
        return "seconds", 1.0
    return ("milliseconds", 1e3) if longest_s >= 1e-3 else ("microseconds", 1e6)


def batch_picture(points: Sequence[BatchPoint], chosen: int) -> Picture:
    """Step time and tokens per second over the batch size, with the chosen batch size marked."""
    sizes = [point.batch_size for point in points]

    def draw(figure: "FigureBase") -> None:
        sides: Any = figure.subplots(1, 2)
        left, right = sides
        for axes, values, title in (
            (left, [point.step_s for point in points], "seconds per step"),
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
            axes.set_xlabel("batch size")
            axes.set_title(title, fontsize=9)
            axes.grid(visible=True, which="major", linewidth=0.3)
        left.legend(frameon=False, fontsize=8)

    return Picture("Other batch sizes in the same configuration", 3.0, draw)


def batch_labels(sizes: Sequence[int], chosen: int) -> list[str]:
    """A label for each tick; empty where it would overlap another. The chosen batch size is always labelled.

    Args:
        sizes: batch sizes in ascending order; the axis is logarithmic.
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
    """Label a logarithmic axis with plain numbers, at least two.

    Args:
        axis: an axis of matplotlib.
        ratio: largest divided by smallest value. For several decades there is a tick at each decade, for
            about one decade at 1, 2 and 5, and for less there are evenly spaced ticks.
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
    """One chart as an SVG element for an HTML page."""
    figure = _figure(picture.height_inches)
    picture.draw(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def drawn(pictures: Sequence[Picture], heading: str, suffix: str) -> bytes:
    """Draw all charts below each other in one image.

    Args:
        pictures: the charts, from top to bottom.
        heading: heading of the image.
        suffix: `.png` or `.svg`.

    Returns:
        The contents of the file.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
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
