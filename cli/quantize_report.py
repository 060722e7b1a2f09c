"""Errors of quantization, as tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from planner.sizes import format_bytes

from .progress import byte_bar
from .quantize_request import request_from
from .render import Column, show_facts, show_json, show_table, show_text

if TYPE_CHECKING:
    from quantize import ErrorReport

#: Rows of the table; `--json` has every tensor.
_SHOWN: Final = 20


def show_errors(options: dict[str, Any]) -> None:
    """Measure the errors of tensors and, with a text, of the model; show them, and draw them where asked."""
    from quantize import report

    with byte_bar("measuring", is_shown=not options["as_json"]) as bar:
        errors = report(request_from(options), text=options["text"], progress=bar.advance, started=bar.expect)
    if options["plot"] is not None:
        errors.plot(options["plot"])
    if options["as_json"]:
        show_json({"tensors": errors.tensors, "model": errors.model})
        return
    _show(errors, options["plot"])


def _show(errors: "ErrorReport", plot: Path | None) -> None:
    quantized = [e for e in errors.tensors if e.decision.is_quantized]
    rows = [
        (e.name, f"{e.relative_error:.4f}", f"{e.sqnr_db:.1f}", f"{e.max_abs_error:.2g}",
         format_bytes(e.output_bytes))
        for e in quantized[:_SHOWN]
    ]  # fmt: skip
    columns = (
        Column("tensor"),
        Column("relative error", is_number=True),
        Column("SQNR dB", is_number=True),
        Column("largest", is_number=True),
        Column("size", is_number=True),
    )
    show_table(columns, rows, title="worst tensors" if len(quantized) > _SHOWN else "tensors")
    totals, model = errors.totals, errors.model
    facts = [
        ("quantized", f"{totals.num_quantized} of {totals.num_tensors} tensors"),
        ("size", f"{format_bytes(totals.output_bytes)} instead of {format_bytes(totals.source_bytes)}"),
        ("relative error", f"{totals.relative_error:.4f}, {totals.sqnr_db:.1f} dB"),
    ]
    if model is not None:
        facts += [
            ("text", f"{model.num_tokens} tokens, windows of {model.window_tokens}"),
            ("perplexity", f"{model.quantized.perplexity:.4f}, plain {model.plain.perplexity:.4f}"),
            ("logits", f"{model.logits_relative_error:.4f} relative error"),
            ("same best token", f"{model.top1_agreement:.1%}"),
        ]
    if plot is not None:
        facts.append(("plot", str(plot)))
    show_facts(facts)
    kept: dict[str, int] = {}
    for error in errors.tensors:
        if not error.decision.is_quantized:
            kept[error.decision.reason] = kept.get(error.decision.reason, 0) + 1
    show_text(*(f"Kept, {count}: {reason}." for reason, count in kept.items()))
