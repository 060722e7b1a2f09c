"""Shows a plan on the terminal: placement, memory and time."""

from collections.abc import Iterable, Mapping

from planner.report.explain import Place
from planner.schema.breakdown import PHASES, MemoryBreakdown, TimeBreakdown, worst_by_device
from planner.schema.plan import Alternative, Plan, Prediction
from planner.search.alternatives import best_by_runtime
from planner.search.what_if import Change
from planner.sizes import format_bytes, format_dollars, format_seconds, format_seconds_briefly

from .render import Bar, Column, show_bars, show_facts, show_table, show_text

#: Field of a time breakdown → column title; seven columns have to fit in 80 characters.
_TIME_PARTS = {
    "compute": "compute",
    "weight_movement": "weights",
    "kv_movement": "KV",
    "communication": "hops",
    "host_overhead": "host",
}
_MEMORY_PARTS = ("weights", "kv", "activations", "staging", "context", "slack")


def show_prediction(prediction: Prediction) -> None:
    """Show memory bars for each device, and a table of the times of both phases."""
    show_bars(list(_bars(prediction.memory)))
    titles = ("total", *_TIME_PARTS.values())
    columns = [Column("time"), *(Column(title, is_number=True) for title in titles)]
    rows = [(phase, *_times(prediction.time[phase])) for phase in PHASES if prediction.time[phase].total > 0]
    show_table(columns, rows)
    facts = [
        ("whole call", format_seconds(prediction.total_s)),
        ("throughput", f"{prediction.tokens_per_s:.4g} tokens/s"),
        ("loading", format_seconds(prediction.load_s)),
    ]
    if prediction.usd_per_million_tokens is not None:
        facts.append(("price", f"${format_dollars(prediction.usd_per_million_tokens)} per million tokens"))
    facts.append(("weakest source", prediction.source.value))
    show_facts(facts)


def show_places(places: Iterable[Place]) -> None:
    """Show where weights are stored and where their modules run."""
    columns = (
        Column("stored on"),
        Column("runs on"),
        Column("weights", is_number=True),
        Column("modules", wraps=True),
    )
    show_table(columns, [(p.stored_on, p.runs_on, format_bytes(p.num_bytes), p.modules) for p in places])


def show_comparison(plan: Plan) -> None:
    """Show the best configuration of each runtime, the chosen one first; for others why they cannot run."""
    priced = [one for one in best_by_runtime(plan) if one.batch_size]
    refused = [one for one in best_by_runtime(plan) if not one.batch_size]
    is_priced = plan.hardware.usd_per_hour is not None
    titles = ("batch", "prefill", "step", "tok/s", *(["$/Mtok"] if is_priced else []), "load")
    columns = (
        Column("runtime"),
        *(Column(title, is_number=True) for title in titles),
        Column("why not", wraps=True),
    )
    show_table(columns, [_runtime(one, is_priced=is_priced) for one in priced])
    show_text(*(f"{one.runtime} cannot run this model on this machine: {one.reason}" for one in refused))


def _runtime(one: Alternative, *, is_priced: bool) -> tuple[str, ...]:
    if not one.fits:
        return (one.name, str(one.batch_size), *[""] * (4 + is_priced), one.reason)
    price = one.usd_per_million_tokens
    return (
        one.name,
        str(one.batch_size),
        format_seconds_briefly(one.prefill_s),
        format_seconds_briefly(one.decode_s) if one.decode_s else "",
        f"{one.tokens_per_s:.3g}",
        *([_dollars(price) if price is not None else ""] if is_priced else []),
        format_seconds_briefly(one.load_s),
        one.reason,
    )


def _dollars(price: float) -> str:
    return format_dollars(price) if price < 100 else f"{price:.0f}"


def show_alternatives(alternatives: Iterable[Alternative]) -> None:
    """Show the other configurations that were considered, and why they were not chosen."""
    columns = (
        Column("alternative", wraps=True),
        Column("batch", is_number=True),
        Column("prefill", is_number=True),
        Column("step", is_number=True),
        Column("tokens/s", is_number=True),
        Column("why not", wraps=True),
    )
    rows = [_alternative(one) for one in alternatives if one.batch_size]
    if rows:
        show_table(columns, rows)


def show_changes(changes: Iterable[Change]) -> None:
    """Show the effect of changes to the machine or to the model's dtype."""
    columns = (
        Column("change", wraps=True),
        Column("speedup", is_number=True),
        Column("batch", is_number=True),
        Column("step", is_number=True),
        Column("tokens/s", is_number=True),
        Column("configuration", wraps=True),
    )
    rows = [
        (
            c.what,
            f"{c.speedup:.2f}×",
            str(c.batch_size),
            format_seconds(c.decode_s) if c.decode_s else "",
            f"{c.tokens_per_s:.3g}",
            c.label,
        )
        if c.possible
        else (c.what, "", "", "", "", c.reason)
        for c in changes
    ]
    show_table(columns, rows)


def headline(plan: Plan) -> str:
    """One line: model, machine, runtime, batch size and speed."""
    decode = plan.prediction.time["decode"].total
    step = f", {format_seconds(decode)} a step" if decode else ""
    return (
        f"{plan.model.name} on {plan.hardware.name}: {plan.runtime}, {plan.workload.dtype}, batch "
        f"{plan.workload.batch_size}{step}, {plan.prediction.tokens_per_s:.3g} tokens/s"
    )


def _alternative(one: Alternative) -> tuple[str, ...]:
    if not one.fits:
        return (one.label, str(one.batch_size), "", "", "", one.reason)
    return (
        one.label,
        str(one.batch_size),
        format_seconds(one.prefill_s),
        format_seconds(one.decode_s) if one.decode_s else "",
        f"{one.tokens_per_s:.3g}",
        one.reason,
    )


def _times(time: TimeBreakdown) -> tuple[str, ...]:
    parts = (getattr(time, name) for name in _TIME_PARTS)
    return (format_seconds(time.total), *(format_seconds(s) if s else "" for s in parts))


def _bars(memory: Mapping[str, Mapping[str, MemoryBreakdown]]) -> Iterable[Bar]:
    """The memory bar of each device in its worse phase."""
    for device, worst in worst_by_device(memory).items():
        yield Bar(
            label=device,
            parts={name: getattr(worst, name) for name in _MEMORY_PARTS},
            capacity=worst.capacity,
            caption=f"{format_bytes(worst.total)} of {format_bytes(worst.capacity)}",
        )
