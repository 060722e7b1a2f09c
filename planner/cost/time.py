"""Seconds of one assignment, per phase."""

import itertools
from collections.abc import Iterable

import msgspec

from planner.cost.assignment import Assignment, kind_of, leaves
from planner.cost.problem import CPU, GPU, Problem, UnitPrice
from planner.cost.runtime_model import Law
from planner.cost.time_terms import copy_s
from planner.schema.breakdown import PHASES, TimeBreakdown, total_time
from planner.schema.quantity import Quantity, weakest


def time(problem: Problem, assignment: Assignment) -> dict[str, TimeBreakdown]:
    """Seconds of one prefill and of the mean decode step."""
    hooked = is_hooked(problem.law, assignment)
    source = weakest(q.source for q in _quantities(problem, assignment))
    result = {}
    for phase in PHASES:
        if problem.weight(phase) == 0:
            result[phase] = TimeBreakdown()
            continue
        parts = [problem.glue[phase].time(hooked=False)]
        parts += [
            unit_time(problem, unit, executes, lives, phase, hooked=hooked)
            for unit, executes, lives in zip(
                problem.units, assignment.executes, assignment.lives, strict=True
            )
        ]
        exchanged = hops_s(problem, assignment.executes, phase) + problem.communication_s[phase]
        parts.append(TimeBreakdown(communication=exchanged, source=source))
        result[phase] = _overlapped(problem, total_time(parts))
    return result


def is_hooked(law: Law, assignment: Assignment) -> bool:
    """Whether the runtime's hooks are on the modules."""
    if law.hooks == "split":
        return len(assignment.places) > 1
    return law.hooks == "always"


def _overlapped(problem: Problem, time: TimeBreakdown) -> TimeBreakdown:
    """Weights that are copied while the device computes show only where they take longer."""
    if not problem.settings.overlaps:
        return time
    left = max(0.0, time.weight_movement - time.compute)
    return msgspec.structs.replace(time, weight_movement=left)


def unit_time(
    problem: Problem, unit: UnitPrice, executes: str, lives: tuple[str, ...], phase: str, *, hooked: bool
) -> TimeBreakdown:
    """One unit's share of one forward."""
    waits = problem.law.hooks_wait
    span = unit.spans[kind_of(executes)][phase].time(hooked=hooked, waits=waits)
    crossing = problem.crossing_s(phase) if executes == CPU and problem.main_kind == GPU else 0.0
    moved = [
        (leaf.forwards[phase], problem.movement(leaf, place, executes))
        for leaf, place in zip(unit.leaves, lives, strict=True)
        if place != executes and leaf.forwards[phase]
    ]
    return span + TimeBreakdown(
        weight_movement=sum(count * movement.copy_s for count, movement in moved),
        host_overhead=sum(count * movement.host_s for count, movement in moved),
        kv_movement=problem.kv_movement_s(unit, phase),
        communication=crossing,
    )


def hops_s(problem: Problem, executes: tuple[str, ...], phase: str) -> float:
    """Handing the residual stream from GPU to GPU, and the result back to the first."""
    peer = problem.profile.peer
    gpus = [device for device in executes if device != CPU]
    if peer is None or not gpus:
        return 0.0
    stops = [*gpus, problem.settings.main]
    num_hops = sum(a != b for a, b in itertools.pairwise(stops))
    return num_hops * copy_s(problem.crossing_bytes[phase], peer, pinned=True)


def _quantities(problem: Problem, assignment: Assignment) -> Iterable[Quantity]:
    for kind in {kind_of(device) for device in assignment.executes}:
        yield from problem.quantities(kind)
    seen = set()
    for executes, leaf, lives in leaves(problem, assignment):
        if lives != executes and (lives, executes) not in seen:
            seen.add((lives, executes))
            yield from problem.movement(leaf, lives, executes).quantities


def objective_s(problem: Problem, times: dict[str, TimeBreakdown]) -> float:
    """Seconds of the whole `generate()` call: what every search minimises at a given batch."""
    return sum(problem.weight(phase) * times[phase].total for phase in PHASES)
