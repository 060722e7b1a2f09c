"""The `quantize` command: quantize a checkpoint, decode one, or measure the errors."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.sizes import format_bytes, format_seconds
from quantize import FORMAT_NAMES, SCHEME_NAMES

from .options import output_options
from .params import Size
from .program import run_program
from .progress import byte_bar
from .quantize_flags import flags_in_errors, request_from, with_flags
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
@click.argument("checkpoint")
@click.option(
    "--scheme", type=click.Choice(SCHEME_NAMES), help="How groups are encoded.  [default: symmetric-search]"
)
@click.option("--format", "format_name", type=click.Choice(FORMAT_NAMES), help="What to write.")
@click.option("--bits", type=click.Choice(["8", "4"]), default="8", show_default=True)
@click.option("--group-size", type=_GroupSize(), help="Weights per scale along the input, or `row`.")
@click.option(
    "--group-dim",
    type=click.Choice(["0", "1"]),
    help="zero-inference: groups run along the output (0) or the input (1).",
)
@click.option("--groups", type=click.IntRange(1), help="moq: groups per tensor.  [default: 64]")
@click.option("--mlp-extra-grouping", is_flag=True, help="moq: twice the groups in MLPs of 4 × hidden.")
@click.option(
    "--activations", is_flag=True, help="W8A8: activations are quantized by token as the model runs."
)
@click.option(
    "--tp", type=click.IntRange(1, 1024), help="safetensors: cut for so many ranks in the same pass."
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Quantize these modules as well.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these modules as they are.")
@click.option("--report", is_flag=True, help="Show the error of every tensor, worst first; write nothing.")
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --report: also logits and perplexity on this text, beside the plain model's.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="With --report: draw errors by layer and kind.")
@click.option("--allow-nonfinite", is_flag=True, help="Take NaN and infinite weights for zero.")
@click.option(
    "--dequantize", "plain", type=click.Choice(_DTYPES), help="Make a plain checkpoint of CHECKPOINT."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: beside CHECKPOINT]"
)
@click.option("--memory", type=Size(), default="512MiB", show_default=True, help="Anonymous memory to use.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Threads.  [default: one per core, at most 8]")
@click.option("--max-shard-size", type=Size(), default="5GB", show_default=True, help="Largest file.")
@click.option("--overwrite", is_flag=True, help="Replace an output that this tool wrote before.")
@output_options
def command(**options: Any) -> None:
    """Encode the Linears of CHECKPOINT as integers with scales, streamed in bounded memory.

    By default 8 bits in groups of 128, scales searched for the least error, in compressed-tensors' format,
    which transformers and vLLM load. Embeddings, norms, routers and the head stay as they are.

    Exit status: 0 done; 2 usage; 3 bad input, or no room; 4 runtime failure.
    """
    with flags_in_errors():
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
    notes = [with_flags(note) for note in done.notes]
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
