"""Plots of quantization errors: the error of every weight, by layer and kind of module.

matplotlib is not needed for anything else and is imported when a plot is asked for.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from .errors import QuantizeError
from .quality.measures import relative_error
from .quality.tensors import TensorError, totals

#: What matplotlib writes that people look at.
_SUFFIXES: Final = (".png", ".svg", ".pdf")
#: Roles of `reshard`'s tables, in the order in which a block uses them → colour and marker. One hue for
#: attention, one for the MLP, so that the eye tells them apart before it reads the legend.
_STYLES: Final[dict[str, tuple[str, str]]] = {
    "query_key_value": ("#08519c", "o"),
    "query": ("#08306b", "o"),
    "key": ("#2171b5", "s"),
    "value": ("#6baed6", "^"),
    "attention_output": ("#41ab5d", "D"),
    "mlp_gate_up": ("#a63603", "v"),
    "mlp_gate": ("#7f2704", "P"),
    "mlp_up": ("#d94801", "v"),
    "mlp_output": ("#fd8d3c", "X"),
}
_OTHER: Final = ("#6a51a3", "*")
_BLOCK: Final = re.compile(r"^(.*?\.)?(\d+)(?=\.|$)")
#: With more blocks than this, markers would run into each other.
_MOST_MARKERS: Final = 48
#: Errors that differ by more than this factor, as those of 8 and 4 bits do, leave nothing to see on one axis.
_MOST_ON_ONE_AXIS: Final = 6


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The error of one kind of module in one block; a block's experts are one kind together.

    Attributes:
        stack: what the block's number is counted in, as in `model.layers`; empty outside of blocks.
        block: its number; -1 outside of blocks.
        role: the kind, as `quantize.select.Decision` has it.
        relative_error: of all weights there.
    """

    stack: str
    block: int
    role: str
    relative_error: float


def points(errors: Sequence[TensorError]) -> tuple[Point, ...]:
    """The quantized tensors' errors by block and kind, sorted so."""
    energies: dict[tuple[str, int, str], list[float]] = {}
    for error in errors:
        if error.decision.is_quantized:
            match = _BLOCK.match(error.decision.module)
            stack, block = ((match[1] or "").rstrip("."), int(match[2])) if match else ("", -1)
            sums = energies.setdefault((stack, block, error.decision.role), [0.0, 0.0])
            sums[0] += error.weight_energy
            sums[1] += error.error_energy
    return tuple(
        Point(stack=stack, block=block, role=role, relative_error=relative_error(*sums))
        for (stack, block, role), sums in sorted(energies.items())
    )


def plot_errors(path: Path, errors: Mapping[str, Sequence[TensorError]], *, title: str = "") -> None:
    """Draw the relative error of every kind of module over the blocks, a panel for each way to quantize.

    Args:
        path: the picture, `.png`, `.svg` or `.pdf`; overwritten.
        errors: what the panel is called → what `tensor_errors` gave for the same model.
        title: over all panels.

    Raises:
        QuantizeError: no matplotlib, another suffix, or nothing to draw.
    """
    if path.suffix not in _SUFFIXES:
        raise QuantizeError(f"{path} cannot be drawn; give a name that ends in {', '.join(_SUFFIXES)}")
    panels = {label: points(found) for label, found in errors.items()}
    if not any(panels.values()):
        raise QuantizeError(f"{path} would be empty: no tensor is quantized")
    figure_class, canvas_class = _matplotlib()
    columns = {2: 2, 4: 2}.get(len(panels), min(len(panels), 3))
    lines = math.ceil(len(panels) / columns)
    figure = figure_class(figsize=(max(7.5, 4.2 * columns + 1.6), 3.4 * lines + 1.0), layout="constrained")
    # No pyplot: a library has no business with the windows and the state that it keeps.
    canvas_class(figure)
    axes = figure.subplots(lines, columns, sharex=True, sharey=_share_axis(panels), squeeze=False)
    places = _places(panels.values())
    for axis, (label, found) in zip(axes.flat, panels.items(), strict=False):
        _draw(axis, found, places)
        whole = totals(errors[label])
        axis.set_title(_caption(label, whole.relative_error, whole.sqnr_db), fontsize=10, loc="left")
    used, spare = list(axes.flat)[: len(panels)], list(axes.flat)[len(panels) :]
    for axis in spare:
        axis.remove()
    for axis in used[-columns:]:
        axis.tick_params(labelbottom=True)
    _label(figure, used, panels, places)
    if title:
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    figure.savefig(path, dpi=150)


def _matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise QuantizeError(
            "a plot needs matplotlib, which is not installed; install it with `pip install matplotlib`"
        ) from None
    return Figure, FigureCanvasAgg


def _share_axis(panels: Mapping[str, Sequence[Point]]) -> bool:
    """Whether one vertical axis does for all panels."""
    found = [point.relative_error for panel in panels.values() for point in panel]
    return max(found) <= _MOST_ON_ONE_AXIS * min(found)


def _caption(label: str, error: float, sqnr_db: float) -> str:
    return f"{label}\n{100 * error:.3g} % overall, {sqnr_db:.1f} dB"


def _places(panels: Any) -> dict[tuple[str, int], int]:
    """Where every block is on the horizontal axis; a gap between stacks."""
    blocks = sorted({(p.stack, p.block) for found in panels for p in found})
    places, at, last = {}, 0, blocks[0][0]
    for stack, block in blocks:
        at += stack != last
        places[stack, block] = at
        last, at = stack, at + 1
    return places


def _draw(axis: Any, found: Sequence[Point], places: Mapping[tuple[str, int], int]) -> None:
    by_line: dict[tuple[str, str], list[Point]] = {}
    for point in found:
        by_line.setdefault((point.role, point.stack), []).append(point)
    for (role, _), line in by_line.items():
        colour, marker = _STYLES.get(role, _OTHER)
        axis.plot(
            [places[p.stack, p.block] for p in line],
            [100 * p.relative_error for p in line],
            color=colour,
            marker=marker if len(line) <= _MOST_MARKERS else None,
            markersize=5,
            linewidth=1.3,
            label=_words(role),
        )
    axis.margins(y=0.08)
    axis.grid(axis="y", color="#d8dee4", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _label(
    figure: Any,
    axes: Sequence[Any],
    panels: Mapping[str, Sequence[Point]],
    places: Mapping[tuple[str, int], int],
) -> None:
    stacks = sorted({stack for stack, _ in places})
    step = max(1, math.ceil(len(places) / 12))
    ticks = {at: str(block) for (_, block), at in places.items() if block >= 0 and block % step == 0}
    for axis in axes:
        axis.set_xticks(list(ticks), list(ticks.values()))
    figure.supxlabel(f"block of {', '.join(s for s in stacks if s) or 'the model'}", fontsize=10)
    others = "" if _share_axis(panels) else "; every panel has its own axis"
    figure.supylabel(f"relative error of the weights, %{others}", fontsize=10)
    roles = {point.role for panel in panels.values() for point in panel}
    ordered = [r for r in _STYLES if r in roles] + sorted(roles - set(_STYLES))
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    names = [_words(role) for role in ordered]
    figure.legend([handles[n] for n in names], names, loc="outside right upper", frameon=False, fontsize=9)


def _words(role: str) -> str:
    return role.replace("mlp", "MLP").replace("_", " ")
