"""The scatter plot of predicted against measured values."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from planner.accuracy.points import Point
from planner.errors import InvalidInputError
from planner.files import write_atomically
from planner.report.figures import Picture, drawn, plain_ticks

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

#: Origin of a point → marker and colour; the colours are distinguishable with every kind of colour vision.
_MARKS: Final = {"own": ("o", "#0072B2"), "published": ("^", "#D55E00")}
#: Relative errors of the bands around the diagonal.
_BANDS: Final = (0.15, 0.30)


def scatter_picture(points: Sequence[Point], title: str = "Predicted against measured") -> Picture:
    """A log-log panel for each metric, with the diagonal and the bands within 15 % and 30 % of it."""
    panels = list(dict.fromkeys(point.panel for point in points))

    def draw(figure: "FigureBase") -> None:
        sides: Any = figure.subplots(1, len(panels), squeeze=False)
        for axes, panel in zip(sides[0], panels, strict=True):
            _panel(axes, panel, [point for point in points if point.panel == panel])
        sides[0][0].set_ylabel("predicted")

    return Picture(title, 3.0, draw)


def _panel(axes: Any, panel: str, points: Sequence[Point]) -> None:
    values = [value for point in points for value in (point.measured, point.predicted)]
    ends = (min(values) / 1.6, max(values) * 1.6)
    for share, shade in zip(reversed(_BANDS), ("#eeeeee", "#dcdcdc"), strict=True):
        below, above = [end * (1 - share) for end in ends], [end * (1 + share) for end in ends]
        axes.fill_between(ends, below, above, color=shade, linewidth=0)
    axes.plot(ends, ends, color="black", linewidth=0.7)
    for origin, (mark, colour) in _MARKS.items():
        of_origin = [point for point in points if point.origin == origin]
        if of_origin:
            measured, predicted = [p.measured for p in of_origin], [p.predicted for p in of_origin]
            look = {"s": 18, "marker": mark, "color": colour, "alpha": 0.75, "zorder": 3}
            axes.scatter(measured, predicted, label=f"{origin} ({len(of_origin)})", **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis, ends[1] / ends[0])
    axes.set_aspect("equal", adjustable="box")
    axes.set_title(panel, fontsize=9)
    axes.set_xlabel("measured")
    axes.tick_params(labelsize=7)
    axes.legend(frameon=False, fontsize=7, loc="upper left")


def check_picture(path: Path) -> None:
    """Check that a chart can be written to a path, before anything is computed for it.

    Raises:
        InvalidInputError: the suffix is not `.png` or `.svg`, or the parent folder does not exist.
    """
    if path.suffix not in (".png", ".svg") or not path.parent.is_dir() or path.is_dir():
        raise InvalidInputError(f"{path} must be a .png or .svg file in an existing folder")


def save_scatter(points: Sequence[Point], heading: str, path: Path) -> None:
    """Write the scatter plot atomically.

    Args:
        points: the points to draw; at least one.
        heading: heading of the chart.
        path: file that ends in `.png` or `.svg`.

    Raises:
        InvalidInputError: as `check_picture`; or there is no point, or matplotlib is not installed.
    """
    check_picture(path)
    if not points:
        raise InvalidInputError("there is no row with both a measured and a predicted number to draw")
    picture = scatter_picture(points, "shaded: within 15 % and 30 %")
    write_atomically(path, drawn([picture], heading, path.suffix))
