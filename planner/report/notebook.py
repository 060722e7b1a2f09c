"""How plans, explanations and comparisons show themselves in a notebook."""

from collections.abc import Iterable, Sequence
from html import escape

from planner.graph.model import Model
from planner.report.explain import Explanation
from planner.report.machines import machine_cells
from planner.report.page import plan_html
from planner.schema.hardware import HardwareProfile
from planner.schema.notebook import Renderers
from planner.schema.plan import Plan
from planner.search.compare_machines import Machines
from planner.sizes import format_bytes, format_count


def renderers() -> Renderers:
    """The values of the Python interface, by class, as the report shows them."""
    return {
        Explanation: _explanation,
        HardwareProfile: _hardware,
        Machines: _machines,
        Model: _model,
        Plan: plan_html,
    }


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _explanation(explanation: Explanation) -> str:
    places = _table(
        ("stored on", "runs on", "weights", "modules", "why"),
        [(p.stored_on, p.runs_on, format_bytes(p.num_bytes), p.modules, p.why) for p in explanation.places],
    )
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in explanation.sentences)
    return f"<p><b>{escape(explanation.headline)}</b></p>{places}<ul>{items}</ul>"


def _machines(machines: Machines) -> str:
    titles = ("machine", "$/hour", "$ per million tokens", "tokens/s", "batch", "step", "configuration")
    return _table(titles, map(machine_cells, machines))


def _model(model: Model) -> str:
    graph = model.graph
    rows = [
        ("class", graph.model_class),
        ("parameters", format_count(graph.num_parameters)),
        ("no-split blocks", str(len(graph.blocks))),
        ("dtype of the checkpoint", model.dtype or "not stated"),
    ]
    return f"<p><b>{escape(model.name)}</b></p>{_table(('', ''), rows)}"


def _hardware(profile: HardwareProfile) -> str:
    gpu = profile.gpu
    rows = [
        ("GPUs", "none" if gpu is None else f"{profile.num_gpus} × {gpu.name}"),
        ("memory of each", "" if gpu is None else format_bytes(gpu.memory_bytes.value)),
        ("host memory", format_bytes(profile.host.memory_bytes.value)),
        ("disk", "none" if profile.disk is None else format_bytes(profile.disk.capacity_bytes.value)),
    ]
    return f"<p><b>{escape(profile.name)}</b>: {escape(profile.description)}</p>{_table(('', ''), rows)}"
