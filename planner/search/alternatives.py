"""What lost, and why: every way that was priced beside the one that was chosen. Pure."""

import msgspec

from planner.cost.predict import predict
from planner.errors import InfeasibleError
from planner.schema.plan import Alternative, Plan, Prediction
from planner.schema.request import Request
from planner.search.best_placement import PricedPlacement
from planner.search.candidates import Candidate, Refusal, SearchResult, distinct
from planner.sizes import format_bytes, format_seconds


def objective_value(candidate: Candidate, request: Request) -> float:
    """What the objective minimises; a price per hour is the same for all on one machine."""
    total_s = candidate.priced.total_s
    return total_s if request.objective == "latency" else total_s / candidate.priced.batch_size


def label_of(priced: PricedPlacement) -> str:
    """The way in words; how host copies are made is beside the point when there are none."""
    execution, assignment = priced.problem.scenario.execution, priced.assignment
    moves = any(
        place != runs_on
        for runs_on, stored_on in zip(assignment.runs_on, assignment.stored_on, strict=True)
        for place in stored_on
    )
    is_split = "cpu" in assignment.runs_on and execution.main != "cpu"
    if execution.runtime != "accelerate" or moves or is_split or execution.kv_cache != "device":
        return execution.label
    return "accelerate, everything resident"


def alternatives_to(winner: Candidate, result: SearchResult, request: Request) -> tuple[Alternative, ...]:
    """Everything else: what fits by the objective, then what does not fit, then what cannot run here."""
    candidates = [winner, *(c for c in result.candidates if c is not winner)]
    losers = sorted(distinct(candidates)[1:], key=lambda c: _order(c, request))
    priced = [_alternative(loser, winner, request) for loser in losers]
    refused = {(one.label, one.reason): _refused(one) for one in result.refusals}
    return (*priced, *refused.values())


def _order(loser: Candidate, request: Request) -> tuple[bool, bool, float]:
    """What fits by the objective; what does not by what it lacks, on the device that lacks most."""
    if not loser.priced.fits:
        return (True, False, float(loser.priced.worst_shortage[1]))
    return (False, loser.too_slow, objective_value(loser, request))


def best_by_runtime(plan: Plan) -> tuple[Alternative, ...]:
    """One line for every runtime, the chosen one first: its best way, or why it has none."""
    chosen = _chosen(plan)
    lines = {chosen.runtime: chosen}
    for one in plan.alternatives:
        lines.setdefault(one.runtime, one)
    return tuple(lines.values())


def _chosen(plan: Plan) -> Alternative:
    line = Alternative(
        runtime=plan.runtime,
        label=plan.label,
        num_ranks=plan.num_ranks,
        batch_size=plan.workload.batch_size,
        fits=True,
        reason="chosen",
    )
    return _predicted(line, plan.prediction)


def _predicted(line: Alternative, prediction: Prediction) -> Alternative:
    """The line with the numbers of what fits."""
    return msgspec.structs.replace(
        line,
        prefill_s=prediction.time["prefill"].total,
        decode_s=prediction.time["decode"].total,
        tokens_per_s=prediction.tokens_per_s,
        usd_per_million_tokens=prediction.usd_per_million_tokens,
        load_s=prediction.load_s,
    )


def _refused(one: Refusal) -> Alternative:
    return Alternative(runtime=one.runtime, label=one.label, batch_size=0, fits=False, reason=one.reason)


def _alternative(loser: Candidate, winner: Candidate, request: Request) -> Alternative:
    priced = loser.priced
    way = label_of(priced)
    label = way if loser.dtype == winner.dtype else f"{way}, {loser.dtype}"
    line = Alternative(
        runtime=loser.execution.runtime,
        label=label,
        num_ranks=loser.execution.num_ranks,
        batch_size=priced.batch_size,
        fits=priced.fits,
        reason="",
    )
    if priced.fits:
        line = msgspec.structs.replace(line, reason=_why_lost(loser, winner, request))
        return _predicted(line, predict(priced.problem, priced.assignment))
    device, lacking = priced.worst_shortage
    return msgspec.structs.replace(
        line,
        deficit_bytes=lacking,
        deficit_device=device,
        reason=f"{format_bytes(lacking)} short on {device}",
    )


def _why_lost(loser: Candidate, winner: Candidate, request: Request) -> str:
    if loser.too_slow:
        return f"takes {format_seconds(loser.priced.total_s)}, over the limit"
    best = objective_value(winner, request)
    ratio = objective_value(loser, request) / best if best > 0 else 1.0
    if 0.999 < ratio < 1.001:
        return "as fast; the chosen one is simpler"
    if ratio < 1:
        return f"{1 / ratio:.2f}× faster, not asked for"
    what = {"latency": "slower", "throughput": "less", "cost": "dearer"}[request.objective]
    if request.objective == "throughput":
        return f"{100 * (1 - 1 / ratio):.0f} % {what}"
    return f"{ratio:.2f}× {what}" if ratio >= 1.1 else f"{100 * (ratio - 1):.1f} % {what}"


def infeasible(result: SearchResult, request: Request) -> InfeasibleError:
    """The error that says what the nearest way lacks, or by how much the fastest is too slow."""
    candidates = result.candidates
    slow = [c for c in candidates if c.priced.fits]
    if slow:
        fastest = min(slow, key=lambda c: c.priced.total_s)
        return InfeasibleError(
            f"nothing finishes within {format_seconds(request.max_latency_s or 0.0)}: the fastest, "
            f"{label_of(fastest.priced)} at batch {fastest.priced.batch_size}, takes "
            f"{format_seconds(fastest.priced.total_s)}",
            device="",
            deficit_bytes=0,
        )
    nearest = min(candidates, key=lambda c: sum(c.priced.shortage_bytes.values()))
    shortages = nearest.priced.shortage_bytes
    device, lacking = nearest.priced.worst_shortage
    words = " and ".join(f"{format_bytes(n)} on {d}" for d, n in sorted(shortages.items()))
    workload = nearest.priced.problem.scenario.workload
    return InfeasibleError(
        f"does not fit at batch {workload.batch_size} with {workload.prompt_tokens} + "
        f"{workload.new_tokens} tokens in {nearest.dtype}: the nearest way, {nearest.execution.label}, "
        f"lacks {words}",
        device=device,
        deficit_bytes=lacking,
    )
