"""What lost, and why: every way that was priced beside the one that was chosen. Pure."""

import msgspec

from planner.cost.predict import predict
from planner.errors import InfeasibleError
from planner.schema.plan import Alternative, Plan, Prediction
from planner.schema.request import Request
from planner.search.best_placement import Candidate
from planner.search.candidates import Contender, Field, Refusal, distinct
from planner.sizes import format_bytes, format_seconds


def badness(contender: Contender, request: Request) -> float:
    """What the objective minimises; a price per hour is the same for all on one machine."""
    total_s = contender.candidate.total_s
    return total_s if request.objective == "latency" else total_s / contender.candidate.batch_size


def label_of(candidate: Candidate) -> str:
    """The way in words; how host copies are made is beside the point when there are none."""
    settings, assignment = candidate.problem.settings, candidate.assignment
    moves = any(
        place != executes
        for executes, lives in zip(assignment.executes, assignment.lives, strict=True)
        for place in lives
    )
    is_split = "cpu" in assignment.executes and settings.main != "cpu"
    if settings.runtime != "accelerate" or moves or is_split or settings.kv_cache != "device":
        return settings.label
    return "accelerate, everything resident"


def alternatives_to(winner: Contender, field: Field, request: Request) -> tuple[Alternative, ...]:
    """Everything else: what fits by the objective, then what does not fit, then what cannot run here."""
    contenders = [winner, *(c for c in field.contenders if c is not winner)]
    losers = sorted(distinct(contenders)[1:], key=lambda c: _order(c, request))
    priced = [_alternative(loser, winner, request) for loser in losers]
    refused = {(one.label, one.reason): _refused(one) for one in field.refusals}
    return (*priced, *refused.values())


def _order(loser: Contender, request: Request) -> tuple[bool, bool, float]:
    """What fits by the objective; what does not by what it lacks, on the device that lacks most."""
    if not loser.candidate.fits:
        return (True, False, float(loser.candidate.worst_shortage[1]))
    return (False, loser.too_slow, badness(loser, request))


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


def _alternative(loser: Contender, winner: Contender, request: Request) -> Alternative:
    candidate = loser.candidate
    way = label_of(candidate)
    label = way if loser.dtype == winner.dtype else f"{way}, {loser.dtype}"
    line = Alternative(
        runtime=loser.settings.runtime,
        label=label,
        num_ranks=loser.settings.num_ranks,
        batch_size=candidate.batch_size,
        fits=candidate.fits,
        reason="",
    )
    if candidate.fits:
        line = msgspec.structs.replace(line, reason=_why_lost(loser, winner, request))
        return _predicted(line, predict(candidate.problem, candidate.assignment))
    device, lacking = candidate.worst_shortage
    return msgspec.structs.replace(
        line,
        deficit_bytes=lacking,
        deficit_device=device,
        reason=f"{format_bytes(lacking)} short on {device}",
    )


def _why_lost(loser: Contender, winner: Contender, request: Request) -> str:
    if loser.too_slow:
        return f"takes {format_seconds(loser.candidate.total_s)}, over the limit"
    best = badness(winner, request)
    ratio = badness(loser, request) / best if best > 0 else 1.0
    if 0.999 < ratio < 1.001:
        return "as fast; the chosen one is simpler"
    if ratio < 1:
        return f"{1 / ratio:.2f}× faster, not asked for"
    what = {"latency": "slower", "throughput": "less", "cost": "dearer"}[request.objective]
    if request.objective == "throughput":
        return f"{100 * (1 - 1 / ratio):.0f} % {what}"
    return f"{ratio:.2f}× {what}" if ratio >= 1.1 else f"{100 * (ratio - 1):.1f} % {what}"


def infeasible(field: Field, request: Request) -> InfeasibleError:
    """The error that says what the nearest way lacks, or by how much the fastest is too slow."""
    contenders = field.contenders
    slow = [c for c in contenders if c.candidate.fits]
    if slow:
        fastest = min(slow, key=lambda c: c.candidate.total_s)
        return InfeasibleError(
            f"nothing finishes within {format_seconds(request.max_latency_s or 0.0)}: the fastest, "
            f"{label_of(fastest.candidate)} at batch {fastest.candidate.batch_size}, takes "
            f"{format_seconds(fastest.candidate.total_s)}",
            device="",
            deficit_bytes=0,
        )
    nearest = min(contenders, key=lambda c: sum(c.candidate.shortage_bytes.values()))
    shortages = nearest.candidate.shortage_bytes
    device, lacking = nearest.candidate.worst_shortage
    words = " and ".join(f"{format_bytes(n)} on {d}" for d, n in sorted(shortages.items()))
    workload = nearest.candidate.problem.workload
    return InfeasibleError(
        f"does not fit at batch {workload.batch_size} with {workload.prompt_tokens} + "
        f"{workload.new_tokens} tokens in {nearest.dtype}: the nearest way, {nearest.settings.label}, "
        f"lacks {words}",
        device=device,
        deficit_bytes=lacking,
    )
