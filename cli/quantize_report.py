"""What quantization costs, as tables."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from planner.sizes import format_bytes

from .progress import byte_bar
from .render import Column, show_facts, show_json, show_table, show_text

if TYPE_CHECKING:
    from quantize.formats.base import Output
    from quantize.quality.model import ModelErrors
    from quantize.quality.tensors import TensorError
    from quantize.scheme import Scheme
    from reshard.formats.base import Source

#: Rows of the table; `--json` has every tensor.
_SHOWN: Final = 20


def show_errors(source: "Source", output: "Output | Scheme", options: dict[str, Any]) -> None:
    """Measure the errors of tensors and, with a text, of the model; show them, and draw them where asked."""
    from quantize.quality.tensors import tensor_errors

    if not hasattr(output, "encoder"):
        from quantize.quality.loading import output_of

        output = output_of(output, allow_nonfinite=options["allow_nonfinite"])
    patterns = {"include": options["include"], "exclude": options["exclude"]}
    jobs = options["jobs"] or min(8, os.cpu_count() or 1)
    with byte_bar("measuring", is_shown=not options["as_json"]) as bar:
        errors = tensor_errors(
            source,
            output,
            **patterns,
            memory_bytes=options["memory"],
            jobs=jobs,
            progress=bar.advance,
            started=bar.expect,
        )
    model: ModelErrors | None = None
    if options["text"] is not None:
        from quantize.quality.model import model_errors

        model = model_errors(
            Path(options["checkpoint"]),
            output,
            options["text"],
            **patterns,
            memory_bytes=options["memory"],
            jobs=jobs,
        )
    if options["plot"] is not None:
        from quantize.plot import plot_errors

        plot_errors(options["plot"], {output.name: errors})
    if options["as_json"]:
        show_json({"tensors": errors, "model": model})
        return
    _show(errors, model, options["plot"])


def _show(errors: "tuple[TensorError, ...]", model: "ModelErrors | None", plot: Path | None) -> None:
    from quantize.quality.tensors import totals

    quantized = [e for e in errors if e.decision.is_quantized]
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
    found = totals(errors)
    facts = [
        ("quantized", f"{found.num_quantized} of {found.num_tensors} tensors"),
        ("size", f"{format_bytes(found.output_bytes)} instead of {format_bytes(found.source_bytes)}"),
        ("relative error", f"{found.relative_error:.4f}, {found.sqnr_db:.1f} dB"),
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
    for error in errors:
        if not error.decision.is_quantized:
            kept[error.decision.reason] = kept.get(error.decision.reason, 0) + 1
    show_text(*(f"Kept, {count}: {reason}." for reason, count in kept.items()))
