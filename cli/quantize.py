"""The `quantize` command: a checkpoint in, integers and scales out; or the other way round."""

import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.sizes import format_bytes, format_seconds

from .completion import folders
from .options import output_options, version_option
from .params import Size
from .program import run_program
from .progress import byte_bar
from .quantize_choice import FORMATS, SCHEMES, choose_format, choose_output, choose_scheme
from .render import Column, show_facts, show_json, show_table, show_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantize.formats.base import Output
    from quantize.scheme import Scheme
    from quantize.select import Decision
    from reshard.formats.base import Source
    from reshard.job import Request
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
    type=click.Choice(SCHEMES),
    help="How the scales of the weights are computed.  [default: symmetric-search]",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    help="Output format.  [default: compressed-tensors for symmetric schemes, otherwise safetensors]",
)
@click.option(
    "--bits", type=click.Choice(["8", "4"]), default="8", show_default=True, help="Bits per weight."
)
@click.option(
    "--group-size", type=_GroupSize(), help="Weights that share a scale along the input, or `row` for all."
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
    if options["plain"] is not None:
        _dequantize(options)
        return
    from reshard.job import open_source

    scheme, name = choose_scheme(options), choose_format(options)
    # Most choices need no look at the checkpoint, and what is remote is not opened twice.
    source = cache(lambda: open_source(options["checkpoint"]))
    if options["report"] or options["text"] or options["plot"]:
        from .quantize_report import show_errors

        is_named = options["format_name"] not in (None, "zero-inference")
        show_errors(source(), choose_output(name, scheme, options, source) if is_named else scheme, options)
    elif name == "zero-inference":
        _write_ds_config(source(), scheme, options)
    else:
        request = _request(options, "int" + options["bits"])
        output = choose_output(name, scheme, options, source)
        _quantize(request, output, options, lambda: output.notes(source()))


def _request(options: dict[str, Any], suffix: str) -> "Request":
    from reshard.job import Request

    folder = Path(os.path.abspath(options["checkpoint"]))
    return Request(
        source=options["checkpoint"],
        output=options["output"] or folder.with_name(f"{folder.name}-{suffix}"),
        degrees=(options["tp"] or 1,),
        format="huggingface",
        memory_bytes=options["memory"],
        jobs=options["jobs"] or min(8, os.cpu_count() or 1),
        max_shard_bytes=options["max_shard_size"],
        overwrite=options["overwrite"],
    )


def _quantize(
    request: "Request", output: "Output", options: dict[str, Any], notes: "Callable[[], tuple[str, ...]]"
) -> None:
    from quantize.convert import quantize

    decided: dict[str, Decision] = {}
    with byte_bar("quantizing", is_shown=not options["as_json"]) as bar:
        report = quantize(
            request,
            output,
            include=options["include"],
            exclude=options["exclude"],
            progress=bar.advance,
            started=lambda job: bar.expect(sum(c.read_bytes for c in job.copies)),
            decided=decided.update,
        )
    if options["as_json"]:
        show_json({"report": report, "decisions": list(decided.values()), "notes": notes()})
        return
    _show_report(report, output.name)
    alike: dict[tuple[bool, str], list[Decision]] = {}
    for decision in decided.values():
        alike.setdefault((decision.is_quantized, decision.reason), []).append(decision)
    rows = [
        (str(len(of)), "quantized" if is_quantized else "kept", of[0].name, reason)
        for (is_quantized, reason), of in sorted(alike.items(), key=lambda item: not item[0][0])
    ]
    columns = (
        Column("tensors", is_number=True),
        Column(""),
        Column("such as", wraps=True),
        Column("why", wraps=True),
    )
    show_table(columns, rows)
    show_text(*(f"Note: {note}." for note in (*notes(), *report.notes)))


def _write_ds_config(source: "Source", scheme: "Scheme", options: dict[str, Any]) -> None:
    from quantize.formats.zero_inference import notes, write_ds_config
    from quantize.scheme import ZeroInference
    from quantize.select import decide

    if not isinstance(scheme, ZeroInference):
        raise click.UsageError(f"--scheme {scheme.name} is not ZeRO-Inference's.")
    if options["output"] is None:
        raise click.UsageError("Say where the DeepSpeed configuration goes: --output ds_config.json")
    decisions = decide(source, options["include"], options["exclude"])
    write_ds_config(options["output"], source, decisions, scheme, overwrite=options["overwrite"])
    count = sum(d.is_quantized for d in decisions.values())
    if options["as_json"]:
        show_json(
            {"output": options["output"], "decisions": list(decisions.values()), "notes": notes(scheme)}
        )
        return
    show_facts([("output", str(options["output"])), ("quantized while loading", f"{count} Linears")])
    show_text(*(f"Note: {note}." for note in notes(scheme)))


def _dequantize(options: dict[str, Any]) -> None:
    from quantize.dequantize import dequantize

    request = _request(options, options["plain"])
    with byte_bar("decoding", is_shown=not options["as_json"]) as bar:
        report = dequantize(
            request,
            options["plain"],
            progress=bar.advance,
            started=lambda job: bar.expect(sum(c.read_bytes for c in job.copies)),
        )
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
