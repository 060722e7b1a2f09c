"""The errors of tensors and of predictions, as a value that a notebook shows as a table."""

from html import escape
from pathlib import Path
from typing import Final

import msgspec

from .quality.model import ModelErrors
from .quality.tensors import TensorError, Totals, totals

#: Rows of the HTML table; `tensors` has all.
_SHOWN: Final = 20


class ErrorReport(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one way to quantize one checkpoint.

    Attributes:
        format: what was measured.
        tensors: one per tensor: the quantized ones, the worst relative error first; then those that stay.
        model: what quantization does to predictions; None without a text.
    """

    format: str
    tensors: tuple[TensorError, ...]
    model: ModelErrors | None = None

    @property
    def totals(self) -> Totals:
        """Sums over all tensors."""
        return totals(self.tensors)

    def plot(self, path: Path, *, title: str = "") -> None:
        """Draw the relative error by block and kind of module; see `quantize.plot.plot_errors`."""
        from .plot import plot_errors

        plot_errors(path, {self.format: self.tensors}, title=title)

    def _repr_html_(self) -> str:
        """Totals, and the worst tensors, as an HTML table."""
        head = ("tensor", "relative error", "SQNR (dB)", "largest error", "bytes", "bytes before")
        rows = [_row("th", head)]
        quantized = [error for error in self.tensors if error.decision.is_quantized]
        for error in quantized[:_SHOWN]:
            numbers = (error.relative_error, error.sqnr_db, error.max_abs_error)
            sizes = (error.output_bytes, error.source_bytes)
            rows.append(_row("td", (error.name, *(f"{n:.4g}" for n in numbers), *map(str, sizes))))
        every = self.totals
        summary = (
            f"{self.format}: {every.num_quantized} of {every.num_tensors} tensors quantized, relative error "
            f"{every.relative_error:.4g}, {every.output_bytes} bytes instead of {every.source_bytes}"
        )
        if self.model is not None:
            summary += (
                f"; perplexity {self.model.quantized.perplexity:.4f}, plain {self.model.plain.perplexity:.4f}"
            )
        return f"<table><caption>{escape(summary)}</caption>{''.join(rows)}</table>"


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
