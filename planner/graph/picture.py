"""Draws a module graph as SVG: one box per stage, top to bottom, with its bytes and operations.

The SVG is written directly: a column of boxes needs no layout engine, and equal graphs give equal files.
"""

from collections.abc import Callable, Sequence
from typing import Final
from xml.sax.saxutils import escape

from planner.graph.schema import ModuleGraph
from planner.graph.stages import CONTEXT, Stage, stages
from planner.sizes import format_bytes, format_count, format_flops

_FONT_PX: Final = 14
_SMALL_PX: Final = 12
# A monospace glyph is 0.6 em wide; the excess is for fonts that are slightly wider.
_EM_WIDTH: Final = 0.63
_LINE_PX: Final = 18
_PAD_PX: Final = 14
_GAP_PX: Final = 26
_BAR_PX: Final = 6
_HEADER_PX: Final = 76

_STYLE: Final = (
    "text{font-family:'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#1b1f24}"
    f".title{{font-size:{_FONT_PX}px;font-weight:bold}}"
    f".line{{font-size:{_SMALL_PX}px}}"
    f".faint{{font-size:{_SMALL_PX}px;fill:#57606a}}"
    ".box{fill:#f6f8fa;stroke:#8c959f}.stack{fill:#ddf4ff;stroke:#0969da}"
    ".bar{fill:#0969da}.arrow{stroke:#57606a;stroke-width:1.5;fill:none}.tip{fill:#57606a}"
)


def draw(graph: ModuleGraph) -> str:
    """The SVG document: title and totals, then a box for each stage, with arrows between them."""
    shown = stages(graph)
    texts = [_lines(stage) for stage in shown]
    header = _header(graph, shown)
    width = _width([header, *texts])
    total_bytes = max(1, sum(sum(stage.weight_bytes) for stage in shown))
    parts: list[str] = [_text(_PAD_PX, 26, "title", header[0])]
    parts += [_text(_PAD_PX, 26 + _LINE_PX * (i + 1), "faint", line) for i, line in enumerate(header[1:])]
    top = _HEADER_PX
    for index, (stage, lines) in enumerate(zip(shown, texts, strict=True)):
        if index:
            parts.append(_arrow(width / 2, top))
            top += _GAP_PX
        height = 2 * _PAD_PX + _LINE_PX * len(lines) + _BAR_PX
        parts.append(_box(stage, lines, top, width, height, sum(stage.weight_bytes) / total_bytes))
        top += height
    height = top + _PAD_PX
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">\n'
        f"<title>{escape(graph.model_class)}</title>\n<style>{_STYLE}</style>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _header(graph: ModuleGraph, shown: Sequence[Stage]) -> list[str]:
    kv = sum(sum(stage.kv_bytes_per_token) for stage in shown)
    flops = sum(sum(stage.decode_flops) for stage in shown)
    weights = sum(sum(stage.weight_bytes) for stage in shown)
    sums = (format_bytes(weights), format_bytes(kv), format_flops(flops))
    return [
        f"{graph.model_class}, {format_count(graph.num_parameters)} parameters",
        "{} of weights, {} of KV cache per token, {} per new token".format(*sums),
        f"2 bytes an element; operations at batch 1 after {CONTEXT - 1:,} tokens; bars: share of weights",
    ]


def _lines(stage: Stage) -> list[str]:
    count = len(stage.fqns)
    fqns = stage.fqns[0] if count == 1 else f"{stage.fqns[0]} … {stage.fqns[-1]}"
    lines = [stage.title, fqns or "the model itself"]
    if stage.tied_to:
        lines.append(f"tied to {stage.tied_to}")
    if any(stage.weight_bytes):
        lines.append(_amount("weights", stage.weight_bytes, format_bytes))
    if any(stage.kv_bytes_per_token):
        lines.append(_amount("KV cache per token", stage.kv_bytes_per_token, format_bytes))
    if any(stage.decode_flops):
        lines.append(_amount("per new token", stage.decode_flops, format_flops))
    return lines


def _amount(what: str, values: Sequence[float], formatted: Callable[[float], str]) -> str:
    total = formatted(sum(values))
    if len(values) == 1:
        return f"{what} {total}"
    low, high = formatted(min(values)), formatted(max(values))
    each = low if low == high else f"{low} to {high}"
    return f"{what} {total} ({each} each)"


def _width(blocks: Sequence[Sequence[str]]) -> int:
    longest = max(
        len(line) * (_FONT_PX if index == 0 else _SMALL_PX)
        for lines in blocks
        for index, line in enumerate(lines)
    )
    return round(longest * _EM_WIDTH) + 4 * _PAD_PX


def _box(stage: Stage, lines: Sequence[str], top: int, width: int, height: int, share: float) -> str:
    kind = "stack" if len(stage.fqns) > 1 else "box"
    inner = width - 2 * _PAD_PX
    parts = [f'<rect class="{kind}" x="{_PAD_PX}" y="{top}" width="{inner}" height="{height}" rx="6"/>']
    for index, line in enumerate(lines):
        css = ("title", "faint")[index] if index < 2 else "line"
        parts.append(_text(2 * _PAD_PX, top + _PAD_PX + _LINE_PX * index + _FONT_PX - 1, css, line))
    bar = share * (inner - 2 * _PAD_PX)
    y = top + height - _PAD_PX
    if bar > 0:
        parts.append(
            f'<rect class="bar" x="{2 * _PAD_PX}" y="{y}" width="{bar:.1f}" height="{_BAR_PX}" rx="2"/>'
        )
    return "\n".join(parts)


def _arrow(x: float, top: int) -> str:
    tip = top + _GAP_PX - 2
    return (
        f'<path class="arrow" d="M{x:g} {top + 2}V{tip - 6}"/>'
        f'<path class="tip" d="M{x - 5:g} {tip - 7}h10l-5 7z"/>'
    )


def _text(x: int, y: int, css: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" class="{css}">{escape(text)}</text>'
