"""The alternatives of a plan: every configuration that was priced and not chosen, and why. Pure."""

import msgspec

from planner.cost.predict import predict
from planner.errors import InfeasibleError
from planner.schema.plan import Alternative, Plan, Prediction
from planner.schema.request import Request
from planner.search.best_placement import PricedPlacement
from planner.search.candidates import Candidate, Refusal, SearchResult, distinct
from planner.sizes import format_bytes, format_seconds


def objective_value(candidate: Candidate, request: Request) -> float:
    """The value that the objective minimises: seconds, or seconds per sequence for throughput and cost.

    The price per hour is left out, because it is the same for all candidates on one machine.
    """
    total_s = candidate.priced.total_s
    return total_s if request.objective == "latency" else total_s / candidate.priced.batch_size


def label_of(priced: PricedPlacement) -> str:
    """The configuration in words; the kind of host copies is left out when nothing is copied."""
    execution, assignment = priced.problem.scenario.execution, priced.assignment
    is_streaming = any(
        place != runs_on
        for runs_on, stored_on in zip(assignment.runs_on, assignment.stored_on, strict=True)
        for place in stored_on
    )
    is_split = "cpu" in assignment.runs_on and execution.main != "cpu"
    if execution.runtime != "accelerate" or is_streaming or is_split or execution.kv_cache != "device":
        return execution.label
    return "accelerate, everything resident"


def alternatives_to(winner: Candidate, result: SearchResult, request: Request) -> tuple[Alternative, ...]:
    """Every candidate but the winner, then every refusal.

    Args:
        winner: the candidate that was chosen.
        result: all that was considered, the winner included.
        request: gives the objective.

    Returns:
        What fits, the best by the objective first; then what does not fit, the smallest shortage first; then
        what cannot run on the machine.
    """
    candidates = [winner, *(c for c in result.candidates if c is not winner)]
    losers = sorted(distinct(candidates)[1:], key=lambda c: _order(c, request))
    priced = [_alternative(loser, winner, request) for loser in losers]
    refused = {(refusal.label, refusal.reason): _refused(refusal) for refusal in result.refusals}
    return (*priced, *refused.values())


def _order(loser: Candidate, request: Request) -> tuple[bool, bool, float]:
    """Sort key: what fits, by the objective; then what does not, by its largest shortage."""
    if not loser.priced.fits:
        return (True, False, float(loser.priced.worst_shortage[1]))
    return (False, loser.too_slow, objective_value(loser, request))


def best_by_runtime(plan: Plan) -> tuple[Alternative, ...]:
    """One row for every runtime, the chosen one first: its best configuration, or why it has none."""
    chosen = _chosen(plan)
    rows = {chosen.runtime: chosen}
    for alternative in plan.alternatives:
        rows.setdefault(alternative.runtime, alternative)
    return tuple(rows.values())


def _chosen(plan: Plan) -> Alternative:
    row = Alternative(
        runtime=plan.runtime,
        label=plan.label,
        num_ranks=plan.num_ranks,
        batch_size=plan.workload.batch_size,
        fits=True,
        reason="chosen",
    )
    return _predicted(row, plan.prediction)


def _predicted(row: Alternative, prediction: Prediction) -> Alternative:
    """The row with the predicted numbers of a candidate that fits."""
    return msgspec.structs.replace(
        row,
        prefill_s=prediction.time["prefill"].total,
        decode_s=prediction.time["decode"].total,
        tokens_per_s=prediction.tokens_per_s,
        usd_per_million_tokens=prediction.usd_per_million_tokens,
        load_s=prediction.load_s,
    )


def _refused(refusal: Refusal) -> Alternative:
    return Alternative(
        runtime=refusal.runtime, label=refusal.label, batch_size=0, fits=False, reason=refusal.reason
    )


def _alternative(loser: Candidate, winner: Candidate, request: Request) -> Alternative:
    priced = loser.priced
    label = label_of(priced)
    row = Alternative(
        runtime=loser.execution.runtime,
        label=label if loser.dtype == winner.dtype else f"{label}, {loser.dtype}",
        num_ranks=loser.execution.num_ranks,
        batch_size=priced.batch_size,
        fits=priced.fits,
        reason="",
    )
    if priced.fits:
        row = msgspec.structs.replace(row, reason=_why_lost(loser, winner, request))
        return _predicted(row, predict(priced.problem, priced.assignment))
    device, missing_bytes = priced.worst_shortage
    return msgspec.structs.replace(
        row,
        deficit_bytes=missing_bytes,
        deficit_device=device,
        reason=f"{format_bytes(missing_bytes)} short on {device}",
    )


def _why_lost(loser: Candidate, winner: Candidate, request: Request) -> str:
    if loser.too_slow:
        return f"takes {format_seconds(loser.priced.total_s)}, over the limit"
    best = objective_value(winner, request)
    ratio = objective_value(loser, request) / best if best > 0 else 1.0
    if 0.999 < ratio < 1.001:
        return "as fast; the chosen one is simpler"
    if ratio < 1:
        return f"{1 / ratio:.2f}× faster; chosen by name only"
    what = {"latency": "slower", "throughput": "less", "cost": "more expensive"}[request.objective]
    if request.objective == "throughput":
        return f"{100 * (1 - 1 / ratio):.0f} % {what}"
    return f"{ratio:.2f}× {what}" if ratio >= 1.1 else f"{100 * (ratio - 1):.1f} % {what}"


def infeasible(result: SearchResult, request: Request) -> InfeasibleError:
    """The error for when nothing can be chosen: all is too slow, or nothing fits in memory.

    It names the fastest configuration that fits, or the configuration with the smallest shortage.
    """
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
    device, missing_bytes = nearest.priced.worst_shortage
    words = " and ".join(f"{format_bytes(n)} on {d}" for d, n in sorted(shortages.items()))
    workload = nearest.priced.problem.scenario.workload
    return InfeasibleError(
        f"does not fit at batch {workload.batch_size} with {workload.prompt_tokens} + "
        f"{workload.new_tokens} tokens in {nearest.dtype}: the nearest configuration, "
        f"{nearest.execution.label}, lacks {words}",
        device=device,
        deficit_bytes=missing_bytes,
    )
