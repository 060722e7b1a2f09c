"""`planner explain`: a written plan in words."""

from pathlib import Path

import click

from planner.explain import explain
from planner.plan import read
from planner.sizes import format_bytes

from ..options import output_options
from ..render import show_json, show_text
from ..report import show_alternatives, show_places, show_prediction


@click.command(name="explain")
@click.argument("folder", type=click.Path(path_type=Path))
@output_options
def command(folder: Path, as_json: bool) -> None:
    """Say what is where in the plan in FOLDER and why, what bounds it, and what lost by how much."""
    plan = read(folder)
    explanation = explain(plan)
    if as_json:
        show_json(explanation)
        return
    show_text(explanation.headline)
    show_places(explanation.places)
    show_text(*(f"{p.lives} → {p.executes}: {p.why}." for p in explanation.places))
    show_prediction(plan.prediction)
    show_text(*(f"{bound.sentence}." for bound in explanation.bounds))
    tightest = explanation.tightest
    if tightest is not None:
        show_text(
            f"Tightest is {tightest.device} in {tightest.phase}: {format_bytes(tightest.free_bytes)} of "
            f"{format_bytes(tightest.capacity_bytes)} are free."
        )
    show_alternatives(explanation.rejected)
    show_text(*explanation.notes)
