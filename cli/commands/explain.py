"""`planner explain`: explains a written plan in words."""

from pathlib import Path

import click

import planner
from planner.sizes import format_bytes

from ..flags import with_options
from ..options import output_options
from ..render import show_json, show_text
from ..report import show_alternatives, show_changes, show_comparison, show_places, show_prediction


@click.command(name="explain")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--what-if", "asks_what_if", is_flag=True, help="Also plan with more memory, a faster link and int8."
)
@click.option("--model", "name", help="With --what-if: the model's folder or hub id.")
@output_options
def command(folder: Path, asks_what_if: bool, name: str | None, as_json: bool) -> None:
    """Explain a written plan: its placement, its bottleneck, and why the alternatives lost."""
    plan = planner.read_plan(folder)
    explanation = planner.explain(plan)
    changes = planner.what_if(plan, name) if asks_what_if else ()
    if as_json:
        show_json({"explanation": explanation, "what_if": changes} if asks_what_if else explanation)
        return
    show_text(explanation.headline)
    show_places(explanation.places)
    show_text(*(f"{p.stored_on} → {p.runs_on}: {p.why}." for p in explanation.places))
    show_prediction(plan.prediction)
    show_text(*(f"{bound.sentence}." for bound in explanation.bounds))
    tightest = explanation.tightest
    if tightest is not None:
        show_text(
            f"Least free memory: {format_bytes(tightest.free_bytes)} of "
            f"{format_bytes(tightest.capacity_bytes)} on {tightest.device} in {tightest.phase}."
        )
    show_comparison(plan)
    show_alternatives(explanation.rejected)
    if explanation.nearest:
        show_text(explanation.nearest)
    if changes:
        show_changes(changes)
    show_text(*(with_options(note, "planner") for note in explanation.notes))
