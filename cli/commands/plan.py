"""`planner plan`: chooses the best placement, batch size and runtime for a model on a machine."""

from pathlib import Path
from typing import Any

import click

import planner
from planner.runtimes.registry import RUNTIME_MODELS
from planner.serving.registry import SERVERS

from ..choices import aims, machine, model_and_machine
from ..completion import names_of
from ..flags import with_options
from ..options import output_options, rows_option
from ..render import show_json, show_text
from ..report import headline, show_alternatives, show_comparison, show_places, show_prediction


@click.command(name="plan")
@model_and_machine
@aims("latency")
@click.option("--min-batch", type=int, default=1, show_default=True, help="Smallest batch size to consider.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    shell_complete=names_of(*RUNTIME_MODELS),
    help=f"Consider only this runtime; may be repeated. One of {', '.join(RUNTIME_MODELS)}.",
)
@click.option(
    "--weight-bits",
    type=click.Choice(["4", "8"]),
    help="Let the runtime quantize the weights to this many bits while it loads them.",
)
@click.option(
    "--all", "show_all", is_flag=True, help="Show every configuration that was priced, not one per runtime."
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write the plan as charts: .html, .png or .svg."
)
@rows_option("With --report: rows that `planner bench` wrote, drawn as predicted against measured.")
@click.option(
    "--serve",
    "server",
    type=click.Choice(list(SERVERS)),
    help="With --out: also write the configuration of this server.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write a folder with the plan and a program that runs it."
)
@output_options
def command(
    model: str,
    hardware: str,
    dtype: str | None,
    prompt_tokens: int,
    new_tokens: int,
    trust_remote_code: bool,
    objective: str,
    batch_size: int | None,
    min_batch: int,
    max_latency_s: float | None,
    runtimes: tuple[str, ...],
    weight_bits: str | None,
    show_all: bool,
    report: Path | None,
    row_files: tuple[Path, ...],
    server: str | None,
    out: Path | None,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Choose placement, batch size and runtime for a model on a machine, with the reasons.

    Needs no weights and no GPU; a hub id needs the network for its config.json. The exit status is 1 when no
    plan fits: the message says how many bytes are missing on which device.
    """
    if server is not None and out is None:
        raise click.UsageError("--serve adds files to the plan's folder, so it needs --out FOLDER")
    if row_files and report is None:
        raise click.UsageError("--rows are drawn in a report, so they need --report FILE")
    request = planner.Request(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch_size=batch_size,
        min_batch=min_batch,
        max_latency_s=max_latency_s,
        objective=objective,
        dtype=dtype,
        runtimes=runtimes or None,
        weight_bits=None if weight_bits is None else int(weight_bits),
    )
    if report is not None:
        from planner.report.page import check_path  # charts are drawn only on request

        check_path(report)
    profile = machine(hardware, **overrides)
    traced = planner.load_model(model, trust_remote_code=trust_remote_code)
    plan = planner.plan(traced, profile, request, server=server)
    if report is not None:
        planner.save_report(plan, report, model=traced, row_files=row_files)
    files = planner.emit(plan, out, model=traced, server=server) if out is not None else ()
    if as_json:
        show_json(plan)
        return
    explanation = planner.explain(plan)
    show_text(headline(plan))
    show_places(explanation.places)
    show_prediction(plan.prediction)
    show_comparison(plan)
    if show_all:
        show_alternatives(plan.alternatives)
    show_text(
        *(bound.sentence for bound in explanation.bounds),
        *(with_options(note, "planner") for note in plan.notes),
    )
    if files:
        show_text(f"written: {', '.join(str(file) for file in files)}")
