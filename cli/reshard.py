"""The `reshard` command: one checkpoint in, one or several out."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.sizes import format_bytes, format_seconds

from .completion import DTYPES, folders, names_of
from .options import output_options, version_option
from .params import Size
from .program import run_program
from .progress import byte_bar
from .render import Column, show_facts, show_json, show_table, show_text

if TYPE_CHECKING:
    from reshard import DryRun, Report, Request, Verified

_FORMATS = ("safetensors", "deepspeed", "transformers", "vllm", "megatron", "huggingface")


class _Degrees(click.ParamType):  # type: ignore[type-arg]
    name = "degrees"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isdecimal() and 1 <= int(word) <= 1024 for word in words):
            self.fail(f"{value!r} is no list of degrees such as 8 or 2,4,8", param, ctx)
        return tuple(dict.fromkeys(int(word) for word in words))


@click.command(
    name="reshard", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.argument("checkpoint", shell_complete=folders)
@click.option("--tp", type=_Degrees(), help="Tensor-parallel degree, or several, for example 2,4,8.")
@click.option(
    "--format", "format_name", type=click.Choice(_FORMATS), help="Output format.  [default: safetensors]"
)
@click.option(
    "--dtype", shell_complete=names_of(*DTYPES), help="Convert tensors to float16, bfloat16 or float32."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Output folder.  [default: next to CHECKPOINT]"
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing; show files, byte map, memory and disk needed, and who can load the result.",
)
@click.option("--verify", is_flag=True, help="Check every hash of CHECKPOINT, which this tool wrote.")
@click.option(
    "--against",
    shell_complete=folders,
    help="With --verify: also compare every byte with this checkpoint, the source of CHECKPOINT.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, path_type=Path),
    help="config.json of the model, or its folder, where CHECKPOINT has none.",
)
@click.option(
    "--roles",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Roles file of `planner roles`, used instead of the table of the model's family.",
)
@click.option("--memory", type=Size(), default="512MiB", show_default=True, help="Limit on anonymous memory.")
@click.option(
    "--jobs", type=click.IntRange(1, 256), help="Number of threads.  [default: one per core, at most 8]"
)
@click.option(
    "--max-shard-size", type=Size(), default="5GB", show_default=True, help="Largest size of one file."
)
@click.option("--overwrite", is_flag=True, help="Replace an output folder that this tool wrote.")
@version_option("reshard")
@output_options
def command(
    checkpoint: str,
    tp: tuple[int, ...] | None,
    format_name: str | None,
    dtype: str | None,
    output: Path | None,
    dry_run: bool,
    verify: bool,
    against: str | None,
    config: Path | None,
    roles: Path | None,
    memory: int,
    jobs: int | None,
    max_shard_size: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint to another tensor-parallel degree or format, without a GPU.

    CHECKPOINT is a folder, or an address such as s3://bucket/model. It may be a Hugging Face checkpoint, an
    output of this tool, DeepSpeed pre-shards, a Megatron-LM checkpoint, distributed shards of transformers,
    or vLLM's sharded state. Any degree can be converted to any other. To continue an interrupted run, give
    the same command again.

    Exit status: 0 success; 2 wrong command line; 3 bad input or insufficient disk space; 4 runtime failure.
    """
    threads = jobs or min(8, os.cpu_count() or 1)
    if verify:
        _no_targets(tp, format_name, dtype, output, roles, dry_run)
        _verify(checkpoint, against, memory, threads, as_json=as_json)
        return
    if against is not None:
        raise click.UsageError("--against belongs to --verify.")
    from reshard import Request

    degrees = _degrees(tp, format_name)
    request = Request(
        source=checkpoint,
        output=output or _beside(checkpoint, degrees, format_name),
        degrees=degrees,
        format=format_name or "safetensors",
        dtype=dtype,
        max_shard_bytes=max_shard_size,
        config=config,
        memory_bytes=memory,
        jobs=threads,
        overwrite=overwrite,
        roles=roles,
    )
    if dry_run:
        _dry_run(request, as_json=as_json)
    else:
        _reshard(request, as_json=as_json)


def _no_targets(
    tp: tuple[int, ...] | None,
    format_name: str | None,
    dtype: str | None,
    output: Path | None,
    roles: Path | None,
    dry_run: bool,
) -> None:
    given = {
        "--tp": tp,
        "--format": format_name,
        "--dtype": dtype,
        "--output": output,
        "--roles": roles,
        "--dry-run": dry_run,
    }
    for name, value in given.items():
        if value:
            raise click.UsageError(f"--verify writes nothing; {name} makes no sense with it.")


def _degrees(tp: tuple[int, ...] | None, format_name: str | None) -> tuple[int, ...]:
    if tp is None:
        if format_name == "huggingface":
            return (1,)
        raise click.UsageError("Say the degree: --tp 8, or several: --tp 2,4,8.")
    if format_name == "huggingface" and tp != (1,):
        raise click.UsageError("--format huggingface is merged: --tp 1.")
    return tp


def _beside(checkpoint: str, degrees: tuple[int, ...], format_name: str | None) -> Path:
    """`CHECKPOINT-tp8`; in the working folder when the checkpoint is at a remote address."""
    suffix = "merged" if format_name == "huggingface" else "tp" + "-".join(map(str, degrees))
    if "://" in checkpoint:
        return Path(f"{checkpoint.rstrip('/').rpartition('/')[2]}-{suffix}")
    folder = Path(os.path.abspath(checkpoint))
    return folder.with_name(f"{folder.name}-{suffix}")


def _reshard(request: "Request", *, as_json: bool) -> None:
    from reshard import reshard

    with byte_bar("resharding", is_shown=not as_json) as bar:
        report = reshard(
            request,
            progress=bar.advance,
            started=lambda job: bar.expect(job.read_bytes),
        )
    if as_json:
        show_json(report)
        return
    _show_report(report, request)


def _show_report(report: "Report", request: "Request") -> None:
    degrees = ", ".join(map(str, request.degrees))
    rate = report.read_bytes / max(report.elapsed_s, 1e-9)
    facts = [
        ("output", str(report.output)),
        ("format", f"{request.format}, tp_size {degrees}"),
        ("files", f"{report.files}, {format_bytes(report.written_bytes)}"),
        ("tensors", f"{report.tensors}" + (f", {report.resumed} done before" if report.resumed else "")),
        ("time", f"{format_seconds(report.elapsed_s)}, {format_bytes(rate)}/s read"),
        ("sha256 of the source", report.sha256),
    ]
    show_facts(facts)
    if report.overflows:
        names = ", ".join(report.overflows[:3])
        show_text(
            f"Warning: numbers in {len(report.overflows)} tensors are beyond {request.dtype} and became "
            f"infinite: {names}."
        )
    show_text(*(f"Note: {note}." for note in report.notes))


def _dry_run(request: "Request", *, as_json: bool) -> None:
    from reshard import dry_run

    found = dry_run(request)
    if as_json:
        show_json(found)
        return
    facts = [
        ("source", f"{found.source_format}, tp_size {found.source_tp_size}, {found.model_type}"),
        ("output", str(found.output)),
        ("reads", format_bytes(found.read_bytes)),
        ("writes", format_bytes(found.written_bytes)),
        ("peak memory", f"{format_bytes(found.peak_memory_bytes)}, {found.jobs} threads"),
    ]
    show_facts(facts)
    columns = (Column("file"), Column("rank", is_number=True), Column("tensors", is_number=True))
    rows = [
        (f.file, "all" if f.rank is None else str(f.rank), str(f.tensors), format_bytes(f.size_bytes))
        for f in found.files
    ]
    show_table((*columns, Column("size", is_number=True)), rows, title="files")
    _show_map(found)
    _show_loaders(found)
    show_text(*(f"Note: {note}." for note in found.notes))


def _show_map(found: "DryRun") -> None:
    """Tensors that are cut alike, once: a model has hundreds."""
    ways: dict[str, list[str]] = {}
    for tensor in found.byte_map:
        boxes = [_box(box, tensor.shape) for box in sorted({t.box for t in tensor.targets})]
        way = f"{len(tensor.targets)} × " + (boxes[0] if len(boxes) == 1 else f"{boxes[0]} … {boxes[-1]}")
        ways.setdefault(f"{list(tensor.shape)} {tensor.target_dtype} → {way}", []).append(tensor.name)
    rows = [(names[0], str(len(names)), way) for way, names in ways.items()]
    columns = (Column("tensor"), Column("alike", is_number=True), Column("shape → boxes", wraps=True))
    show_table(columns, rows, title="byte map (--json has every offset)")


def _show_loaders(found: "DryRun") -> None:
    rows = [(a.format, str(a.tp_size), "yes" if a.is_possible else "no", a.says) for a in found.loaders]
    columns = (Column("format"), Column("tp", is_number=True), Column("takes it"), Column("", wraps=True))
    show_table(columns, rows, title="loaders")


def _box(box: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> str:
    parts = [":" if (b, e) == (0, n) else f"{b}:{e}" for (b, e), n in zip(box, shape, strict=True)]
    return f"[{', '.join(parts)}]"


def _verify(folder: str, against: str | None, memory: int, jobs: int, *, as_json: bool) -> None:
    from reshard import verify

    with byte_bar("verifying", is_shown=not as_json) as bar:
        found = verify(
            folder, against, memory_bytes=memory, jobs=jobs, progress=bar.advance, started=bar.expect
        )
    if as_json:
        show_json(found)
        return
    _show_verified(folder, found)


def _show_verified(folder: str, found: "Verified") -> None:
    facts = [
        ("folder", folder),
        ("format", f"{found.format}, tp_size {found.tp_size}"),
        ("read", f"{found.files} files, {format_bytes(found.read_bytes)}"),
        ("tensors", f"{found.tensors}, every hash as the manifest has it; replicas equal"),
        ("cut from", f"a checkpoint with sha256 {found.origin_sha256}"),
    ]
    if found.against is not None:
        facts.append(("against", f"{found.against}: every tensor equal, every slice where it belongs"))
    show_facts(facts)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_program(command, "reshard", sys.argv[1:]))


if __name__ == "__main__":
    main()
