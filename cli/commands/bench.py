"""`planner bench`: runs a plan or a baseline at several batch sizes; shows predicted and measured values."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

import planner
from planner.bench.baselines import BASELINES, write_baseline
from planner.bench.rows import Row, append, record_of
from planner.bench.run import Job, bench
from planner.bench.weights import write_random
from planner.errors import InvalidInputError, RuntimeFailure
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.probe.run import used_gpu_bytes
from planner.schema.hardware import HardwareProfile
from planner.schema.plan import Plan, read
from planner.schema.workload import Workload
from planner.search.candidates import dtype_for
from planner.sizes import format_bytes, format_seconds
from planner.tracing.load import load_recorded

from ..completion import DTYPES, hardware_profiles, models, names_of
from ..exit_codes import ExitCode
from ..options import make_room_for, output_options
from ..params import Size
from ..program import after_json
from ..render import Column, show_json, show_table, show_text


@click.command(name="bench")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--baseline", type=click.Choice(BASELINES), help="Run this baseline instead of a plan.")
@click.option(
    "--model",
    shell_complete=models,
    help="Model of the baseline: short name, folder with a config.json, or hub id. With FOLDER: the plan's "
    "model, where it is not known by name.",
)
@click.option(
    "--hardware",
    shell_complete=hardware_profiles,
    help="Machine of the baseline: profile name, or a .toml file such as `planner probe` writes.",
)
@click.option(
    "--dtype",
    shell_complete=names_of(*DTYPES),
    help="Dtype of the baseline: float16, bfloat16 or float32.  [default: the model's]",
)
@click.option(
    "--batch", "batches", help="Batch sizes, separated by commas, for example 1,8,16.  [default: the plan's]"
)
@click.option("--until-oom", is_flag=True, help="Continue with larger batches up to the largest that runs.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Folder with the weights.  [default: random weights of the model's shapes]",
)
@click.option(
    "--random-weights",
    type=click.Path(path_type=Path),
    help="Write the random weights to this folder and keep them for later runs.",
)
@click.option(
    "--memory-cap",
    "memory_cap_bytes",
    type=Size(),
    help="Limit the GPU's memory, for example to 16GiB, to measure as on a smaller GPU.",
)
@click.option(
    "--prompt",
    "prompt_tokens",
    type=click.IntRange(min=1),
    help="Prompt length in tokens.  [default: the plan's; 128 for a baseline]",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=1),
    help="Number of tokens to generate.  [default: the plan's; 32 for a baseline]",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Least number of calls per batch size; short calls are repeated more often.",
)
@click.option("--isolate", is_flag=True, help="Run every batch size in a process of its own.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Time limit of each process, in seconds.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Append the rows to this .jsonl file."
)
@output_options
def command(
    folder: Path | None,
    baseline: str | None,
    model: str | None,
    hardware: str | None,
    dtype: str | None,
    batches: str | None,
    checkpoint: Path | None,
    random_weights: Path | None,
    memory_cap_bytes: int | None,
    prompt_tokens: int | None,
    new_tokens: int | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Benchmark a written plan or a baseline, and show predicted next to measured values.

    A batch size that runs out of memory gives a row as well. Without --checkpoint the weights are random.
    """
    if (folder is None) == (baseline is None):
        raise click.UsageError("give either a FOLDER with a plan or --baseline")
    if out is not None:
        _check_out(out)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        work = Path(scratch)
        if folder is not None:
            plan, is_predictable, runtime_model, name = read(folder), True, None, folder.name
            traced = load_recorded(plan.model, name=_elsewhere(checkpoint, model))
            spec = traced.known_spec
        else:
            if model is None or hardware is None:
                raise click.UsageError("--baseline needs --model and --hardware")
            name = str(baseline)
            traced = planner.load_model(str(checkpoint or model))
            spec = traced.known_spec
            profile = _capped(load(hardware), memory_cap_bytes)
            workload = Workload(
                batch_size=_numbers(batches, 1)[0],
                prompt_tokens=prompt_tokens or 128,
                new_tokens=new_tokens or 32,
                dtype=dtype_for(traced, profile, dtype),
            )
            folder = work / "plan"
            plan, is_predictable, runtime_model = write_baseline(
                name, spec, traced, profile, workload, folder
            )
        lengths = prompt_tokens or plan.workload.prompt_tokens, new_tokens or plan.workload.new_tokens
        traced.check_lengths(*lengths)
        if memory_cap_bytes is not None and plan.hardware.gpu is None:
            raise InvalidInputError(
                f"--memory-cap simulates a smaller GPU, and {plan.hardware.name} has no GPU"
            )
        _check_gpus(plan)
        job = Job(
            name=name,
            folder=folder,
            plan=plan,
            graph=traced.graph,
            is_predictable=is_predictable,
            runtime_model=runtime_model,
            checkpoint=checkpoint
            or write_random(random_weights or work / "random", spec, traced.graph, plan.workload.dtype),
            weights="random" if checkpoint is None else "checkpoint",
            batches=_numbers(batches, plan.workload.batch_size),
            prompt_tokens=lengths[0],
            new_tokens=lengths[1],
            memory_cap_bytes=memory_cap_bytes,
            **options,
        )
        told: list[Row] = []

        def tell(row: Row) -> None:
            """Print and write each row at once, so that it is kept when a later batch is interrupted."""
            click.echo(_line(row), err=True)
            if out is not None:
                append(out, [row] if told else [record_of(plan), row])
            told.append(row)

        rows = bench(job, tell)
    if as_json:
        show_json(rows)
    else:
        _show(job, rows)
        if out is not None:
            show_text(f"appended to {out}")
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        error = RuntimeFailure(f"batch {failed[0].batch_size} failed: {failed[0].said}")
        if not as_json:
            raise error
        return after_json(error)
    return ExitCode.OK


def _elsewhere(checkpoint: Path | None, model: str | None) -> str | None:
    """Where the model's configuration is, if it has moved since the plan was made."""
    return str(checkpoint.resolve()) if checkpoint is not None else model


def _check_gpus(plan: Plan) -> None:
    """Raise an error when no GPU is visible, before weights of the model's size are written."""
    if plan.main_device != "cpu" and not used_gpu_bytes():
        raise RuntimeFailure(
            f"the plan runs on {plan.main_device}, and no GPU is visible here; planner verify --on cpu runs "
            "a plan on the processor"
        )


def _check_out(out: Path) -> None:
    """Raise an error when no row could be appended to the file, before anything runs."""
    try:
        if out.exists():
            out.open("ab").close()
        else:
            make_room_for(out)
    except OSError as error:
        raise InvalidInputError(f"cannot append rows to {out}: {error.strerror}") from error


def _capped(profile: HardwareProfile, cap: int | None) -> HardwareProfile:
    return profile if cap is None or profile.gpu is None else apply(profile, gpu_memory_bytes=cap)


def _numbers(text: str | None, default: int) -> tuple[int, ...]:
    try:
        return (default,) if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidInputError(
            f"--batch takes numbers separated by commas, for example 1,8,16, not {text!r}"
        ) from None


def _line(row: Row) -> str:
    one = row.measured
    took = row.said if one is None else f"{format_seconds(one.mean_decode_s)} a step"
    return f"{row.name}, batch {row.batch_size}: {row.status.replace('_', ' ')}, {took}"


def _show(job: Job, rows: tuple[Row, ...]) -> None:
    cap = (
        "" if job.memory_cap_bytes is None else f", GPU memory capped to {format_bytes(job.memory_cap_bytes)}"
    )
    show_text(
        f"{job.plan.model.name}, {job.name} ({job.plan.label}), {job.prompt_tokens} prompt and "
        f"{job.new_tokens} new tokens, {job.plan.workload.dtype}, {job.weights} weights{cap}"
    )
    _table("measured", "batch load prefill P50 P90 P99 tokens/s per-sequence", map(_times, rows))
    _table("memory", "batch allocated reserved predicted host predicted-host fits", map(_bytes, rows))
    ran = [row for row in rows if row.measured is not None]
    titles = "batch prefill predicted step predicted-step tokens/s predicted-tokens/s"
    _table("predicted and measured", titles, map(_beside, ran))
    if ran and not any(row.measured.gpu_peak_reserved_bytes for row in ran if row.measured):
        show_text("The runs used no GPU, so no GPU memory was measured.")
    show_text(*(f"batch {row.batch_size}: {row.said}" for row in rows if row.said))


def _table(title: str, titles: str, rows: Iterable[tuple[str, ...]]) -> None:
    columns = [Column(word.replace("-", " "), is_number=True) for word in titles.split()]
    show_table(columns, rows, title=title)


def _times(row: Row) -> tuple[str, ...]:
    one = row.measured
    if one is None:
        return (str(row.batch_size), row.status.replace("_", " "), "", "", "", "", "", "")
    steps = (one.decode_at(share) for share in (0.5, 0.9, 0.99))
    return (
        str(row.batch_size),
        format_seconds(one.load_s),
        format_seconds(one.prefill_s),
        *(format_seconds(step) for step in steps),
        f"{row.tokens_per_s:.3g}",
        format_seconds(one.mean_decode_s / row.batch_size),
    )


def _bytes(row: Row) -> tuple[str, ...]:
    one, said = row.measured, row.predicted
    return (
        str(row.batch_size),
        _largest(one.gpu_peak_allocated_bytes) if one else row.status.replace("_", " "),
        _largest(one.gpu_peak_reserved_bytes) if one else "",
        _largest(said.gpu_bytes) if said else "",
        format_bytes(one.host_peak_bytes) if one else "",
        format_bytes(said.host_bytes) if said else "",
        ("yes" if said.fits else "no") if said else "",
    )


def _largest(each: tuple[int, ...]) -> str:
    return format_bytes(max(each)) if each else ""


def _beside(row: Row) -> tuple[str, ...]:
    one, said = row.measured, row.predicted
    if one is None:
        return ()
    return (
        str(row.batch_size),
        format_seconds(one.prefill_s),
        format_seconds(said.prefill_s) if said else "",
        format_seconds(one.mean_decode_s),
        format_seconds(said.decode_s) if said else "",
        f"{row.tokens_per_s:.3g}",
        f"{said.tokens_per_s:.3g}" if said else "",
    )
