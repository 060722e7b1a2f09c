"""A plan in words: what is where and why, what bounds each phase, what lost and by how much."""

from collections import Counter
from typing import Final

import msgspec

from planner.schema.breakdown import PHASES, MemoryBreakdown, TimeBreakdown
from planner.schema.notebook import ShownInNotebook
from planner.schema.plan import Alternative, Placement, Plan
from planner.sizes import format_seconds

#: What each part of a time breakdown means for a reader.
_BOUNDS = {
    "compute": "the device's own work",
    "weight_movement": "copying streamed weights",
    "kv_movement": "copying the offloaded KV cache",
    "communication": "handing activations between devices",
    "host_overhead": "the host issuing operations and hooks",
}

#: What is longer by less than this share of the device's work does not bound it: a few small modules do that.
_TRIFLE: Final = 0.1


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that live and execute in one way.

    Attributes:
        stored_on, runs_on: devices.
        num_modules, num_bytes: how much of the model.
        modules: a short description, as in `model.layers.0 … 17, lm_head`.
        why: the reason.
    """

    stored_on: str
    runs_on: str
    num_modules: int
    num_bytes: int
    modules: str
    why: str


class PhaseBound(msgspec.Struct, frozen=True, kw_only=True):
    """What most of a phase's time goes to.

    Attributes:
        phase: `prefill` or `decode`.
        part: field of the time breakdown that lasts longest, what happens beside it included.
        share: its share of the phase.
        sentence: in words.
    """

    phase: str
    part: str
    share: float
    sentence: str


class Tightest(msgspec.Struct, frozen=True, kw_only=True):
    """The device with the least room left."""

    device: str
    phase: str
    free_bytes: int
    capacity_bytes: int


class Explanation(msgspec.Struct, ShownInNotebook, frozen=True, kw_only=True):
    """Everything `planner explain` says."""

    headline: str
    places: tuple[Place, ...]
    bounds: tuple[PhaseBound, ...]
    tightest: Tightest | None
    rejected: tuple[Alternative, ...]
    nearest: str
    notes: tuple[str, ...]


def explain(plan: Plan) -> Explanation:
    """Explain a plan from the plan alone."""
    return Explanation(
        headline=_headline(plan),
        places=_places(plan),
        bounds=tuple(
            bound(phase, plan.prediction.time[phase], covers=_covers(plan))
            for phase in PHASES
            if plan.prediction.time[phase].total > 0
        ),
        tightest=tightest(plan.prediction.memory),
        rejected=plan.alternatives,
        nearest=_nearest(plan),
        notes=plan.notes,
    )


def _nearest(plan: Plan) -> str:
    """The rejected plan that came closest, in a sentence; empty when there was none."""
    fitting = [one for one in plan.alternatives if one.fits]
    if fitting:
        return f"The nearest rejected plan is {fitting[0].label}: {fitting[0].reason}."
    lacking = [one for one in plan.alternatives if one.deficit_bytes]
    if lacking:
        least = min(lacking, key=lambda one: one.deficit_bytes)
        return f"Nothing else fits; the nearest is {least.label}: {least.reason}."
    return ""


def bound(phase: str, time: TimeBreakdown, *, covers: str | None = None) -> PhaseBound:
    """What most of a phase's time goes to.

    Args:
        phase: `prefill` or `decode`.
        time: its parts, which add up: a part that runs beside the device's work is what it takes longer.
        covers: the part that does so, if any. Where it takes longer, it lasts for both: a faster device
            would change nothing.
    """
    lengths: dict[str, float] = {part: getattr(time, part) for part in _BOUNDS}
    hides = covers is not None and lengths[covers] > _TRIFLE * time.compute
    if covers is not None and hides:
        lengths[covers] += time.compute
    part = max(lengths, key=lengths.__getitem__)
    seconds = lengths[part]
    share = seconds / time.total if time.total > 0 else 0.0
    beside = f", {format_seconds(time.compute)} of {_BOUNDS['compute']} beside it" if hides else ""
    return PhaseBound(
        phase=phase,
        part=part,
        share=share,
        sentence=(
            f"{phase} takes {format_seconds(time.total)}; {_BOUNDS[part]} is {100 * share:.0f} % of it "
            f"({format_seconds(seconds)}{beside if part == covers else ''})"
        ),
    )


def _covers(plan: Plan) -> str | None:
    """The part of the plan's time that runs beside the device's own work.

    ZeRO-Inference copies weights ahead out of pinned memory. Everywhere else the host issues operations ahead
    of a GPU, and its time is known apart from other host work when nothing is streamed.
    """
    if plan.runtime == "zero-inference":
        return "weight_movement" if plan.host_copies == "pinned" else None
    resident = all(p.stored_on == p.runs_on and p.stored_on.startswith("gpu:") for p in plan.placements)
    return "host_overhead" if resident else None


def tightest(memory: dict[str, dict[str, MemoryBreakdown]]) -> Tightest | None:
    """The device and phase with the smallest share of its capacity free."""
    rows = [
        (part.free / part.capacity, device, phase, part)
        for device, phases in memory.items()
        for phase, part in phases.items()
        if part.capacity
    ]
    if not rows:
        return None
    _, device, phase, part = min(rows, key=lambda row: row[0])
    return Tightest(device=device, phase=phase, free_bytes=part.free, capacity_bytes=part.capacity)


def _headline(plan: Plan) -> str:
    workload = plan.workload
    generates = plan.model.auto_class != "masked-lm"
    new = f" prompt and {workload.new_tokens} new" if generates else ""
    return (
        f"{plan.model.name} in {workload.dtype} on {plan.hardware.name} with {plan.runtime}: batch "
        f"{workload.batch_size}, {workload.prompt_tokens}{new} tokens"
    )


def _places(plan: Plan) -> tuple[Place, ...]:
    groups: dict[tuple[str, str], list[Placement]] = {}
    for placement in plan.placements:
        groups.setdefault((placement.stored_on, placement.runs_on), []).append(placement)
    return tuple(
        Place(
            stored_on=stored_on,
            runs_on=runs_on,
            num_modules=len(members),
            num_bytes=sum(p.num_bytes for p in members),
            modules=describe_modules([p.module for p in members], [p.module for p in plan.placements]),
            why=_why(plan, stored_on, runs_on),
        )
        for (stored_on, runs_on), members in groups.items()
    )


def _why(plan: Plan, stored_on: str, runs_on: str) -> str:
    if stored_on == runs_on:
        if stored_on.startswith("gpu:"):
            return "resident: read at device memory speed, nothing to move"
        if plan.main_device == "cpu":
            return "there is no faster place in this plan"
        return "executing beside its weights beats moving them to the GPU at this batch size"
    copies = "pinned copies" if stored_on == "cpu" and plan.host_copies == "pinned" else "pageable copies"
    room = "the GPU has no room left beside the KV cache and activations"
    if runs_on == "cpu":
        room = "host memory has no room left"
    if stored_on == "disk":
        between = "" if plan.runtime == "zero-inference" else ", and nor has the tier between"
        return f"read from disk at every forward: {room}{between}"
    if stored_on == "peers":
        return f"cut over the ranks' GPUs and gathered at every forward: {room} for all of it"
    return f"streamed from {copies} at every forward: {room}"


def describe_modules(names: list[str], everything: list[str]) -> str:
    """Fqns with runs of layer numbers folded: `lm_head; h.{0-17}; h.{18-27} (attn.q_proj)`.

    Args:
        names: what to describe.
        everything: all modules of the plan; a layer that is in `names` whole needs no list of its parts.
    """
    inners: dict[str, set[str]] = {}
    for name in everything:
        stack, _, inner = _pattern(name)
        inners.setdefault(stack, set()).add(inner)
    patterns: dict[tuple[str, str], list[int]] = {}
    plain: list[str] = []
    for name in names:
        stack, number, inner = _pattern(name)
        if number is None:
            plain.append(name)
        else:
            patterns.setdefault((stack, inner), []).append(number)
    by_range: dict[tuple[str, str], list[str]] = {}
    for (stack, inner), numbers in patterns.items():
        by_range.setdefault((stack, _ranges(numbers)), []).append(inner)
    folded = [
        f"{stack}.{{{numbers}}}" + ("" if set(parts) == inners[stack] else f" ({', '.join(parts)})")
        for (stack, numbers), parts in by_range.items()
    ]
    return "; ".join([*plain, *folded])


def _pattern(name: str) -> tuple[str, int | None, str]:
    """`h.3.attn.q_proj` → (`h`, 3, `attn.q_proj`); no number in it: (the name, None, nothing)."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :])
    return name, None, ""


def _ranges(numbers: list[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7; a number that occurs more than once counts once."""
    runs: list[list[int]] = []
    for number in sorted(Counter(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
