"""Writes the report of a plan: a self-contained HTML page, or its charts as PNG or SVG."""

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
#: Title of each column, and whether it contains numbers.
_COLUMNS: Final = (
    ("runtime", False),
    ("batch", True),
    ("prefill", True),
    ("step", True),
    ("tokens/s", True),
    ("$ per million tokens", True),
    ("loading", True),
    ("why not chosen", False),
)


def check_path(path: Path) -> None:
    """Check that a report can be written to a path, before anything is computed for it.

    Raises:
        InvalidInputError: the suffix is not `.html`, `.png` or `.svg`, the parent folder does not exist, or
            the path is a folder.
    """
    if path.suffix not in _SUFFIXES:
        raise InvalidInputError(
            f"{path} is not a file name for a report; use a name that ends in {', '.join(_SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise InvalidInputError(f"{path.parent} is not a folder, so {path.name} cannot be written there")
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; use the name of a file for the report")


def write_report(plan: Plan, priced: PricedPlacement, path: Path, row_files: Sequence[Path] = ()) -> None:
    """Write the report of a plan atomically.

    Args:
        plan: the plan.
        priced: the priced placement that the plan was made from.
        path: file that ends in `.html` for the page, or in `.png` or `.svg` for its charts.
        row_files: files of benchmark rows; those of the plan's model are drawn as predicted against measured.

    Raises:
        BadFileError: a file of rows cannot be read.
        InvalidInputError: as `check_path`; or matplotlib is not installed, or the file cannot be written.
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
        timeline_picture(spans(priced), f"Predicted timeline of one {what}: {takes}"),
        batch_picture(batches(priced), priced.batch_size),
    ]


def _measured(plan: Plan, row_files: Sequence[Path]) -> list[Picture]:
    """The chart of predicted against measured values; empty without measured rows of the plan's model."""
    lines = [line for line in own_lines(row_files) if line.row.model == plan.model.name]
    points = own_points(lines)
    title = f"Predicted against measured: {plan.model.name}; shaded: within 15 % and 30 %"
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
        rows=[_row(alternative) for alternative in best_by_runtime(plan)],
        places=explanation.places,
        size=format_bytes,
        pictures=[(picture.title, svg(picture)) for picture in pictures],
        sentences=explanation.sentences,
        **more,
    )


def _summary(prediction: Prediction) -> str:
    prefill, decode = (format_seconds(prediction.time[phase].total) for phase in PHASES)
    phases = f"Prefill {prefill}, decode step {decode}" if prediction.time["decode"].total else prefill
    return (
        f"{phases}; {prediction.tokens_per_s:.3g} tokens/s; loading takes "
        f"{format_seconds(prediction.load_s)}. The least reliable source of a number used: "
        f"{prediction.source.value}."
    )


def _priced(plan: Plan) -> str:
    """The hourly price of the machine, with its date."""
    price = plan.hardware.usd_per_hour
    return "" if price is None else f"; ${price.value:,.2f} an hour ({price.note})"


def _row(alternative: Alternative) -> tuple[str, ...]:
    if not alternative.fits:
        batch = str(alternative.batch_size or "")
        return (alternative.name, batch, "", "", "", "", "", alternative.reason)
    price = alternative.usd_per_million_tokens
    return (
        alternative.name,
        str(alternative.batch_size),
        format_seconds(alternative.prefill_s),
        format_seconds(alternative.decode_s) if alternative.decode_s else "",
        f"{alternative.tokens_per_s:.3g}",
        "" if price is None else format_dollars(price),
        format_seconds(alternative.load_s),
        alternative.reason,
    )
