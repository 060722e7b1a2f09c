"""The `quantize` command: a checkpoint in, integers and scales out; or the other way round."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.sizes import format_bytes, format_seconds

from .options import output_options
from .params import Size
from .program import run_program
from .progress import byte_bar
from .render import Column, show_facts, show_json, show_table, show_text

if TYPE_CHECKING:
    from quantize.formats.base import Output
    from quantize.scheme import Scheme
    from quantize.select import Decision
    from reshard.job import Request
    from reshard.run import Report

_SCHEMES = ("symmetric-search", "symmetric", "groups", "rows", "moq", "zero-inference")
_FORMATS = ("compressed-tensors", "bitsandbytes", "safetensors")
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
    "--scheme", type=click.Choice(_SCHEMES), help="How groups are encoded.  [default: symmetric-search]"
)
@click.option("--format", "format_name", type=click.Choice(_FORMATS), help="What to write.")
@click.option("--bits", type=click.Choice(["8", "4"]), default="8", show_default=True)
@click.option("--group-size", type=_GroupSize(), help="Weights per scale along the input, or `row`.")
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
    if options["plain"] is not None:
        _dequantize(options)
        return
    scheme = _scheme(options)
    name = options["format_name"] or _default_format(options["scheme"])
    request = _request(options, "int" + options["bits"])
    output = _output(name, scheme, options)
    _quantize(request, output, options)


def _default_format(scheme: str | None) -> str:
    return "compressed-tensors" if scheme in (None, "symmetric", "symmetric-search") else "safetensors"


def _scheme(options: dict[str, Any]) -> "Scheme":
    from quantize.scheme import SCHEMES

    name = options["scheme"] or "symmetric-search"
    settings: dict[str, Any] = {"bits": int(options["bits"])}
    size = options["group_size"]
    if name == "moq":
        settings |= {"groups": options["groups"] or 64, "mlp_extra_grouping": options["mlp_extra_grouping"]}
    elif options["groups"] or options["mlp_extra_grouping"]:
        raise click.UsageError("--groups and --mlp-extra-grouping belong to --scheme moq.")
    if size is not None:
        if name in ("moq", "rows"):
            raise click.UsageError(f"--group-size does not belong to --scheme {name}.")
        if size == 0 and name == "zero-inference":
            raise click.UsageError("--scheme zero-inference needs a number of weights per group.")
        settings["group_size"] = size or None
    return SCHEMES[name](**settings)


def _output(name: str, scheme: "Scheme", options: dict[str, Any]) -> "Output":
    allowed = options["allow_nonfinite"]
    if options["activations"] and name != "compressed-tensors":
        raise click.UsageError("--activations belongs to --format compressed-tensors.")
    if options["tp"] and name != "safetensors":
        raise click.UsageError("--tp belongs to --format safetensors; cut other formats with reshard.")
    if name == "safetensors":
        from quantize.formats import plain

        return plain.output(scheme, allow_nonfinite=allowed)
    if name == "bitsandbytes":
        from quantize.formats import bitsandbytes

        if options["scheme"] or options["group_size"] is not None or options["bits"] != "8":
            raise click.UsageError("--format bitsandbytes has one scheme: 8 bits, one scale per row.")
        return bitsandbytes.output(allow_nonfinite=allowed)
    from quantize.formats import compressed_tensors

    if scheme.name not in ("symmetric", "symmetric-search"):
        raise click.UsageError(
            f"--scheme {scheme.name} has no place in compressed-tensors; --format safetensors."
        )
    return compressed_tensors.output(
        bits=scheme.bits,
        group_size=getattr(scheme, "group_size", None),
        scales="search" if scheme.name == "symmetric-search" else "absmax",
        activations=options["activations"],
        allow_nonfinite=allowed,
    )


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


def _quantize(request: "Request", output: "Output", options: dict[str, Any]) -> None:
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
        show_json({"report": report, "decisions": list(decided.values())})
        return
    _show_report(report, output.name)
    kept: dict[str, list[Decision]] = {}
    for decision in decided.values():
        kept.setdefault(decision.reason, []).append(decision)
    rows = [(str(len(of)), of[0].name, reason) for reason, of in kept.items()]
    show_table((Column("tensors", is_number=True), Column("such as"), Column("why", wraps=True)), rows)
    show_text(*(f"Note: {note}." for note in (*output.notes, *report.notes)))


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
