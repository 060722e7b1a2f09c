"""`planner compare`: compares machines for one model, by time and by price."""

import click

import planner
from planner.report.machines import machine_cells
from planner.search.compare_machines import Machine

from ..choices import aims, model_and_machines
from ..exit_codes import ExitCode
from ..options import output_options
from ..render import Column, show_json, show_table, show_text


@click.command(name="compare")
@model_and_machines
@aims("throughput")
@output_options
def command(
    model: str,
    hardware: str,
    dtype: str | None,
    prompt_tokens: int,
    new_tokens: int,
    objective: str,
    batch_size: int | None,
    max_latency_s: float | None,
    trust_remote_code: bool,
    as_json: bool,
) -> int:
    """Compare machines for one model: the best plan on each, and its price per million tokens.

    The exit status is 1 when the model fits on none of the machines.
    """
    request = planner.Request(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch_size=batch_size,
        max_latency_s=max_latency_s,
        objective=objective,
        dtype=dtype,
    )
    traced = planner.load_model(model, trust_remote_code=trust_remote_code)
    machines = planner.compare(
        traced, [name.strip() for name in hardware.split(",") if name.strip()], request
    )
    if as_json:
        show_json(machines)
    else:
        new = f" prompt and {new_tokens} new" if traced.graph.generates else ""
        show_text(f"{traced.name}, {prompt_tokens}{new} tokens, best {objective} first")
        _show(machines)
    return ExitCode.OK if any(one.fits for one in machines) else ExitCode.NEGATIVE_RESULT


def _show(machines: tuple[Machine, ...]) -> None:
    columns = (
        Column("machine"),
        Column("$/hour", is_number=True),
        Column("$/Mtok", is_number=True),
        Column("tokens/s", is_number=True),
        Column("batch", is_number=True),
        Column("step", is_number=True),
        Column("configuration", wraps=True),
    )
    show_table(columns, map(machine_cells, machines))
    notes = dict.fromkeys(f"{one.hardware}: {one.price_note}" for one in machines if one.price_note)
    show_text(*(f"price of {note}" for note in notes))
