"""Writes a report: one self-contained HTML page, or its pictures as PNG or SVG."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from planner.accuracy.own import own_lines
from planner.accuracy.points import own_points
from planner.errors import InvalidInputError
from planner.files import write_atomically
from planner.report.explain import explain
from planner.report.figures import Picture, batch_picture, drawn, memory_picture, svg, timeline_picture
from planner.report.scatter import scatter_picture
from planner.report.timeline import batches, spans
from planner.schema.breakdown import PHASES
from planner.schema.plan import Alternative, Plan, Prediction
from planner.search.alternatives import best_by_runtime
from planner.search.best_placement import PricedPlacement
from planner.sizes import format_bytes, format_dollars, format_seconds

_SUFFIXES: Final = (".html", ".png", ".svg")
#: Title and whether it holds numbers.
_COLUMNS: Final = (
    ("runtime", False),
    ("batch", True),
    ("prefill", True),
    ("step", True),
    ("tokens/s", True),
    ("$ per million tokens", True),
    ("loading", True),
    ("why not", False),
)


def check_path(path: Path) -> None:
    """See to it that a report can be written there, before anything is computed for it.

    Raises:
        InvalidInputError: another suffix than `.html`, `.png` or `.svg`, a folder of that name, or none to
            put it in.
    """
    if path.suffix not in _SUFFIXES:
        raise InvalidInputError(f"{path} is no report; give a name that ends in {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise InvalidInputError(f"{path.parent} is no folder, so {path.name} cannot be written there")
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; give the name of a file for the report")


def write_report(plan: Plan, priced: PricedPlacement, path: Path, row_files: Sequence[Path] = ()) -> None:
    """Write the report of a plan; the file appears whole or not at all.

    Args:
        plan: what was chosen.
        priced: what it was made from.
        path: `.html` for the page, `.png` or `.svg` for its pictures.
        row_files: benchmark rows; those of the plan's model are drawn predicted against measured.

    Raises:
        BadFileError: rows cannot be read.
        InvalidInputError: as `check_path`, or matplotlib is missing.
    """
    check_path(path)
    pictures = [*_pictures(plan, priced), *_measured(plan, row_files)]
    if path.suffix == ".html":
        payload = _page(plan, pictures).encode()
    else:
        payload = drawn(pictures, explain(plan).headline, path.suffix)
    try:
        write_atomically(path, payload)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}") from error


def _pictures(plan: Plan, priced: PricedPlacement) -> list[Picture]:
    phase, what = ("decode", "decode step") if priced.problem.num_decode_steps else ("prefill", "forward")
    takes = format_seconds(plan.prediction.time[phase].total)
    return [
        memory_picture(plan.prediction.memory),
        timeline_picture(spans(priced), f"One {what}, as predicted: {takes}"),
        batch_picture(batches(priced), priced.batch_size),
    ]


def _measured(plan: Plan, row_files: Sequence[Path]) -> list[Picture]:
    """Predicted against measured, where rows of the same model ran."""
    lines = [line for line in own_lines(row_files) if line.row.model == plan.model.name]
    points = own_points(lines)
    title = f"Predicted against measured: {plan.model.name}, shaded within 15 % and 30 %"
    return [scatter_picture(points, title)] if points else []


def _page(plan: Plan, pictures: list[Picture]) -> str:
    origin = f"offload-planner {plan.tool_version}; hardware profile {plan.hardware.name}{_priced(plan)}"
    return _rendered("page.html", plan, pictures, origin=origin)


def plan_html(plan: Plan) -> str:
    """A plan as part of a page: its tables and sentences, without charts."""
    return f"<p><b>{escape(explain(plan).headline)}</b></p>\n{_rendered('plan.html', plan, [])}"


def _rendered(name: str, plan: Plan, pictures: list[Picture], **more: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("planner", "report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    explanation = explain(plan)
    return environment.get_template(name).render(
        heading=explanation.headline,
        summary=_summary(plan.prediction),
        columns=_COLUMNS,
        rows=[_row(one) for one in best_by_runtime(plan)],
        places=explanation.places,
        size=format_bytes,
        pictures=[(picture.title, svg(picture)) for picture in pictures],
        sentences=[*(f"{b.sentence}." for b in explanation.bounds), explanation.nearest, *plan.notes],
        **more,
    )


def _summary(prediction: Prediction) -> str:
    prefill, decode = (format_seconds(prediction.time[phase].total) for phase in PHASES)
    phases = f"Prefill {prefill}, then {decode} a step" if prediction.time["decode"].total else prefill
    return (
        f"{phases}; {prediction.tokens_per_s:.3g} tokens/s; loading takes "
        f"{format_seconds(prediction.load_s)}. The weakest number in this is {prediction.source.value}."
    )


def _priced(plan: Plan) -> str:
    """The price behind the prices per token, with its date."""
    price = plan.hardware.usd_per_hour
    return "" if price is None else f"; ${price.value:,.2f} an hour ({price.note})"


def _row(one: Alternative) -> tuple[str, ...]:
    if not one.fits:
        return (one.name, str(one.batch_size or ""), "", "", "", "", "", one.reason)
    price = one.usd_per_million_tokens
    return (
        one.name,
        str(one.batch_size),
        format_seconds(one.prefill_s),
        format_seconds(one.decode_s) if one.decode_s else "",
        f"{one.tokens_per_s:.3g}",
        "" if price is None else format_dollars(price),
        format_seconds(one.load_s),
        one.reason,
    )
