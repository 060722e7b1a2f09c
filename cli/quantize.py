"""The `quantize` command: quantize a checkpoint, decode one, or measure the errors."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.sizes import format_bytes, format_seconds
from quantize import FORMAT_NAMES, SCHEME_NAMES

from .completion import folders
from .flags import with_options
from .options import output_options, version_option
from .params import Size
from .program import run_program
from .progress import byte_bar
from .quantize_request import request_from, usage_errors
from .render import Column, show_facts, show_json, show_table, show_text

if TYPE_CHECKING:
    from quantize import Quantized
    from reshard.run import Report

_DTYPES = ("float32", "float16", "bfloat16")


class _GroupSize(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A number of weights; 0 stands for a whole row."""
        if isinstance(value, int):
            return value
        if value == "row":
            return 0
        if not str(value).isdecimal() or int(str(value)) < 1:
            self.fail(f"{value!r} is neither a number of weights nor `row`", param, ctx)
        return int(str(value))


@click.command(
    name="quantize", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.argument("checkpoint", shell_complete=folders)
@click.option(
    "--scheme",
    type=click.Choice(SCHEME_NAMES),
    help="How the scales of the weights are computed.  [default: symmetric-search]",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMAT_NAMES),
    help="Output format.  [default: compressed-tensors for symmetric schemes, otherwise safetensors]",
)
@click.option(
    "--bits", type=click.Choice(["8", "4"]), default="8", show_default=True, help="Bits per weight."
)
@click.option(
    "--group-size", type=_GroupSize(), help="Weights that share a scale along the input, or `row` for all."
)
@click.option(
    "--group-dim",
    type=click.Choice(["0", "1"]),
    help="With --format zero-inference: groups run along the output (0) or the input (1).",
)
@click.option("--groups", type=click.IntRange(1), help="With --scheme moq: groups per tensor.  [default: 64]")
@click.option(
    "--mlp-extra-grouping",
    is_flag=True,
    help="With --scheme moq: twice as many groups in MLP layers of 4 × the hidden size.",
)
@click.option(
    "--activations", is_flag=True, help="W8A8: activations are quantized as well, per token at run time."
)
@click.option(
    "--tp",
    type=click.IntRange(1, 1024),
    help="With --format safetensors or deepspeed: also shard for this many ranks.",
)
@click.option(
    "--include", multiple=True, metavar="PATTERN", help="Quantize these modules too; may be repeated."
)
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Do not quantize these modules; may be repeated."
)
@click.option(
    "--report", is_flag=True, help="Write no checkpoint; show the error of every tensor, largest first."
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --report: also measure logits and perplexity on this text, next to the unquantized model.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="With --report: write a chart of errors by layer and kind.",
)
@click.option("--allow-nonfinite", is_flag=True, help="Replace NaN and infinite weights by zero.")
@click.option(
    "--dequantize",
    "plain",
    type=click.Choice(_DTYPES),
    help="Convert a quantized CHECKPOINT back to one of this dtype.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Output folder.  [default: next to CHECKPOINT]"
)
@click.option("--memory", type=Size(), default="512MiB", show_default=True, help="Limit on anonymous memory.")
@click.option(
    "--jobs", type=click.IntRange(1, 256), help="Number of threads.  [default: one per core, at most 8]"
)
@click.option(
    "--max-shard-size", type=Size(), default="5GB", show_default=True, help="Largest size of one file."
)
@click.option("--overwrite", is_flag=True, help="Replace an output folder that this tool wrote.")
@version_option("quantize")
@output_options
def command(**options: Any) -> None:
    """Quantize the linear layers of a checkpoint to integers with scales, in bounded memory.

    The default is 8 bits in groups of 128, with scales chosen for the least squared error, in the
    compressed-tensors format that transformers and vLLM load. Embeddings, norms, routers and the output head
    are not quantized.

    Exit status: 0 success; 2 wrong command line; 3 bad input or insufficient disk space; 4 runtime failure.
    """
    with usage_errors():
        if options["plain"] is not None:
            _dequantize(options)
        elif options["report"] or options["text"] or options["plot"]:
            from .quantize_report import show_errors

            show_errors(options)
        else:
            _quantize(options)


def _quantize(options: dict[str, Any]) -> None:
    from quantize import quantize

    with byte_bar("quantizing", is_shown=not options["as_json"]) as bar:
        done = quantize(request_from(options), progress=bar.advance, started=bar.expect)
    notes = [with_options(note, "quantize") for note in done.notes]
    decisions = list(done.decisions)
    if done.report is None:
        _show_ds_config(done, notes, as_json=options["as_json"])
        return
    if options["as_json"]:
        show_json({"report": done.report, "decisions": decisions, "notes": notes})
        return
    _show_report(done.report, done.format)
    alike: dict[tuple[bool, str], list[str]] = {}
    for decision in decisions:
        alike.setdefault((decision.is_quantized, decision.reason), []).append(decision.name)
    rows = [
        (str(len(names)), "quantized" if is_quantized else "kept", names[0], reason)
        for (is_quantized, reason), names in sorted(alike.items(), key=lambda item: not item[0][0])
    ]
    columns = (
        Column("tensors", is_number=True),
        Column(""),
        Column("such as", wraps=True),
        Column("why", wraps=True),
    )
    show_table(columns, rows)
    show_text(*(f"Note: {note}." for note in (*notes, *done.report.notes)))


def _show_ds_config(done: "Quantized", notes: list[str], *, as_json: bool) -> None:
    if as_json:
        show_json({"output": done.output, "decisions": list(done.decisions), "notes": notes})
        return
    count = sum(decision.is_quantized for decision in done.decisions)
    show_facts([("output", str(done.output)), ("quantized while loading", f"{count} Linears")])
    show_text(*(f"Note: {note}." for note in notes))


def _dequantize(options: dict[str, Any]) -> None:
    from quantize import dequantize

    with byte_bar("decoding", is_shown=not options["as_json"]) as bar:
        report = dequantize(request_from(options), options["plain"], progress=bar.advance, started=bar.expect)
    if options["as_json"]:
        show_json(report)
        return
    _show_report(report, f"huggingface, {options['plain']}")


def _show_report(report: "Report", format_name: str) -> None:
    rate = report.read_bytes / max(report.elapsed_s, 1e-9)
    show_facts(
        [
            ("output", str(report.output)),
            ("format", format_name),
            ("files", f"{report.files}, {format_bytes(report.written_bytes)}"),
            ("tensors", f"{report.tensors}" + (f", {report.resumed} done before" if report.resumed else "")),
            ("time", f"{format_seconds(report.elapsed_s)}, {format_bytes(rate)}/s read"),
        ]
    )


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_program(command, "quantize", sys.argv[1:]))


if __name__ == "__main__":
    main()
