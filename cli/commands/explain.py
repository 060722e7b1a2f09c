"""`planner explain`: a written plan in words."""

from pathlib import Path

import click

from planner.errors import ModelError, UnknownNameError
from planner.explain import explain
from planner.plan import Plan, read
from planner.sizes import format_bytes
from planner.what_if import Change, what_if

from ..choices import traced_model
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
    plan = read(folder)
    explanation = explain(plan)
    changes = _changes(plan, name) if asks_what_if else ()
    if as_json:
        show_json({"explanation": explanation, "what_if": changes} if asks_what_if else explanation)
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
    show_comparison(plan)
    show_alternatives(explanation.rejected)
    if explanation.nearest:
        show_text(explanation.nearest)
    if changes:
        show_changes(changes)
    show_text(*explanation.notes)


def _changes(plan: Plan, name: str | None) -> tuple[Change, ...]:
    try:
        spec, model = traced_model(name or plan.model.name, trust_remote_code=False)
    except UnknownNameError as error:
        if name is not None:
            raise
        raise ModelError(
            f"the plan's model {plan.model.name!r} is not known by name; --model takes its folder or hub id"
        ) from error
    if spec.config_sha256 != plan.model.config_sha256:
        raise ModelError(
            f"{name or plan.model.name} is another model than the plan's: its configuration differs"
        )
    return what_if(model, plan)
