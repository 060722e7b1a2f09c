"""Explains a plan in words: placement, bottlenecks, and rejected alternatives, each with a reason."""

from collections import Counter
from typing import Final

import msgspec

from planner.schema.breakdown import PHASES, MemoryBreakdown, TimeBreakdown
from planner.schema.notebook import ShownInNotebook
from planner.schema.plan import Alternative, Placement, Plan
from planner.sizes import format_seconds

#: Part of a time breakdown → description.
_BOUNDS = {
    "compute": "computation on the device",
    "weight_movement": "copying streamed weights",
    "kv_movement": "copying the offloaded KV cache",
    "communication": "communication between devices",
    "host_overhead": "host overhead of operations and hooks",
}

#: A parallel part that exceeds the computation by less than this share of it is not the bottleneck: a few
#: small modules cause such an excess.
_SMALL_EXCESS: Final = 0.1


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Weights with the same storage and execution device.

    Attributes:
        stored_on, runs_on: devices on which the weights are stored and the modules run.
        num_modules, num_bytes: number of modules, and bytes of their weights.
        modules: short list of the modules; see `describe_modules`.
        why: reason for this placement.
    """

    stored_on: str
    runs_on: str
    num_modules: int
    num_bytes: int
    modules: str
    why: str


class PhaseBound(msgspec.Struct, frozen=True, kw_only=True):
    """The bottleneck of a phase.

    Attributes:
        phase: `prefill` or `decode`.
        part: field of the time breakdown with the longest duration, including work in parallel with it.
        share: its share of the phase's time.
        sentence: the bottleneck in words, without a final period.
    """

    phase: str
    part: str
    share: float
    sentence: str


class Tightest(msgspec.Struct, frozen=True, kw_only=True):
    """The device with the smallest share of free memory, in the phase in which that is the case."""

    device: str
    phase: str
    free_bytes: int
    capacity_bytes: int


class Explanation(msgspec.Struct, ShownInNotebook, frozen=True, kw_only=True):
    """The output of `planner explain`.

    Attributes:
        headline: model, machine, runtime and workload.
        places: weights, grouped by storage and execution device.
        bounds: bottleneck of each phase.
        tightest: device with the smallest share of free memory; None without any device.
        rejected: the alternatives that were not chosen.
        nearest: sentence about the best rejected alternative; empty if there is none.
        notes: the plan's notes.
    """

    headline: str
    places: tuple[Place, ...]
    bounds: tuple[PhaseBound, ...]
    tightest: Tightest | None
    rejected: tuple[Alternative, ...]
    nearest: str
    notes: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Bottlenecks, the nearest alternative and notes, as a page lists them."""
        nearest = (self.nearest,) if self.nearest else ()
        return (*(f"{bound.sentence}." for bound in self.bounds), *nearest, *self.notes)


def explain(plan: Plan) -> Explanation:
    """Explain a plan; the plan contains everything that is needed."""
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
    """A sentence about the best rejected alternative; empty if there is none."""
    fitting = [alternative for alternative in plan.alternatives if alternative.fits]
    if fitting:
        return f"The best rejected alternative is {fitting[0].label}: {fitting[0].reason}."
    lacking = [alternative for alternative in plan.alternatives if alternative.deficit_bytes]
    if lacking:
        least = min(lacking, key=lambda alternative: alternative.deficit_bytes)
        return f"No alternative fits; the closest is {least.label}: {least.reason}."
    return ""


def bound(phase: str, time: TimeBreakdown, *, covers: str | None = None) -> PhaseBound:
    """The bottleneck of a phase.

    Args:
        phase: `prefill` or `decode`.
        time: parts of the phase's time, which add up to the total. For a part in parallel with computation it
            contains only the excess over the computation.
        covers: the part in parallel with computation; None if there is none. If its excess is large enough,
            it is counted with its whole duration, because a faster device would not shorten the phase.
    """
    lengths: dict[str, float] = {part: getattr(time, part) for part in _BOUNDS}
    hides = covers is not None and lengths[covers] > _SMALL_EXCESS * time.compute
    if covers is not None and hides:
        lengths[covers] += time.compute
    part = max(lengths, key=lengths.__getitem__)
    seconds = lengths[part]
    share = seconds / time.total if time.total > 0 else 0.0
    parallel = f", in parallel with {format_seconds(time.compute)} of computation" if hides else ""
    return PhaseBound(
        phase=phase,
        part=part,
        share=share,
        sentence=(
            f"{phase} takes {format_seconds(time.total)}; {_BOUNDS[part]} is {100 * share:.0f} % of it "
            f"({format_seconds(seconds)}{parallel if part == covers else ''})"
        ),
    )


def _covers(plan: Plan) -> str | None:
    """The part of the plan's time that is in parallel with computation; None if there is none.

    ZeRO-Inference prefetches weights from pinned memory. With other runtimes the host launches operations
    ahead of the GPU; this part can be separated from other host work only if nothing is streamed.
    """
    if plan.runtime == "zero-inference":
        return "weight_movement" if plan.host_copies == "pinned" else None
    resident = all(p.stored_on == p.runs_on and p.stored_on.startswith("gpu:") for p in plan.placements)
    return "host_overhead" if resident else None


def tightest(memory: dict[str, dict[str, MemoryBreakdown]]) -> Tightest | None:
    """The device and phase with the smallest share of free memory; None without any device."""
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
            return "resident: read from device memory, no copy needed"
        if plan.main_device == "cpu":
            return "this plan runs on the CPU"
        return "at this batch size, running on the CPU is faster than copying the weights to the GPU"
    copies = "pinned copies" if stored_on == "cpu" and plan.host_copies == "pinned" else "pageable copies"
    full = "the GPU's memory is full with other weights, the KV cache and activations"
    if runs_on == "cpu":
        full = "host memory is full"
    if stored_on == "disk":
        also_full = "" if plan.runtime == "zero-inference" or runs_on == "cpu" else ", and so is host memory"
        return f"read from disk at every forward: {full}{also_full}"
    if stored_on == "peers":
        return "partitioned over the ranks' GPUs and gathered at every forward: one GPU cannot hold all of it"
    return f"streamed from {copies} at every forward: {full}"


def describe_modules(names: list[str], everything: list[str]) -> str:
    """A short list of modules, with ranges of layers: `lm_head; h.{0-17}; h.{18-27} (attn.q_proj)`.

    Args:
        names: full names of the modules to describe.
        everything: full names of all modules of the plan; a layer whose modules are all in `names` is listed
            without them.
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
    """`h.3.attn.q_proj` → (`h`, 3, `attn.q_proj`); a name without a number → (the name, None, empty)."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :])
    return name, None, ""


def _ranges(numbers: list[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7; duplicates are ignored."""
    runs: list[list[int]] = []
    for number in sorted(Counter(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
