"""Time of an assignment: seconds per phase, as breakdowns."""

import itertools
from collections.abc import Iterable

import msgspec

from planner.cost.assignment import Assignment, kind_of, leaves
from planner.cost.problem import CPU, GPU, Problem, UnitPrice
from planner.cost.runtime_model import RuntimeModel
from planner.cost.time_terms import copy_s
from planner.schema.breakdown import PHASES, TimeBreakdown, total_time
from planner.schema.quantity import Quantity, weakest


def time(problem: Problem, assignment: Assignment) -> dict[str, TimeBreakdown]:
    """Phase → seconds of one prefill and of the mean decode step, for the whole batch."""
    hooked = is_hooked(problem.scenario.runtime_model, assignment)
    source = weakest(q.source for q in _quantities(problem, assignment))
    result = {}
    for phase in PHASES:
        if problem.weight(phase) == 0:
            result[phase] = TimeBreakdown()
            continue
        parts = [problem.glue[phase].time(hooked=False)]
        parts += [
            unit_time(problem, unit, runs_on, stored_on, phase, hooked=hooked)
            for unit, runs_on, stored_on in zip(
                problem.units, assignment.runs_on, assignment.stored_on, strict=True
            )
        ]
        exchanged = hops_s(problem, assignment.runs_on, phase) + problem.communication_s[phase]
        parts.append(TimeBreakdown(communication=exchanged, source=source))
        result[phase] = _overlapped(problem, total_time(parts))
    return result


def is_hooked(runtime_model: RuntimeModel, assignment: Assignment) -> bool:
    """Whether the runtime has hooks on the modules under this assignment."""
    if runtime_model.hooks == "split":
        return len(assignment.places) > 1
    return runtime_model.hooks == "always"


def _overlapped(problem: Problem, time: TimeBreakdown) -> TimeBreakdown:
    """The time without copies that computing hides, where the configuration overlaps both."""
    if not problem.scenario.execution.overlaps:
        return time
    exposed_s = max(0.0, time.weight_movement - time.compute)
    return msgspec.structs.replace(time, weight_movement=exposed_s)


def unit_time(
    problem: Problem, unit: UnitPrice, runs_on: str, stored_on: tuple[str, ...], phase: str, *, hooked: bool
) -> TimeBreakdown:
    """Time of one unit in one forward of the model.

    Args:
        problem: the priced scenario.
        unit: one of its units.
        runs_on: the device that the unit runs on, `gpu:N` or `cpu`.
        stored_on: for each leaf of the unit, where it is stored: `gpu:N`, `cpu`, `disk` or `peers`.
        phase: `prefill` or `decode`.
        hooked: whether the runtime has hooks on the modules.
    """
    waits = problem.scenario.runtime_model.hooks_wait
    work = unit.work[kind_of(runs_on)][phase].time(hooked=hooked, waits=waits)
    crossing = problem.crossing_s(phase) if runs_on == CPU and problem.main_kind == GPU else 0.0
    moved = [
        (leaf.forwards[phase], problem.movement(leaf, place, runs_on))
        for leaf, place in zip(unit.leaves, stored_on, strict=True)
        if place != runs_on and leaf.forwards[phase]
    ]
    return work + TimeBreakdown(
        weight_movement=sum(count * movement.copy_s for count, movement in moved),
        host_overhead=sum(count * movement.host_s for count, movement in moved),
        kv_movement=problem.kv_movement_s(unit, phase),
        communication=crossing,
    )


def hops_s(problem: Problem, runs_on: tuple[str, ...], phase: str) -> float:
    """Seconds of one forward to copy the residual stream from GPU to GPU, and the result back to the first.

    Args:
        problem: the priced scenario.
        runs_on: for each unit, in execution order, the device that it runs on.
        phase: `prefill` or `decode`.
    """
    peer = problem.scenario.profile.peer
    gpus = [device for device in runs_on if device != CPU]
    if peer is None or not gpus:
        return 0.0
    visited = [*gpus, problem.scenario.execution.main]
    num_hops = sum(source != target for source, target in itertools.pairwise(visited))
    return num_hops * copy_s(problem.crossing_bytes[phase], peer, pinned=True)


def _quantities(problem: Problem, assignment: Assignment) -> Iterable[Quantity]:
    for kind in {kind_of(device) for device in assignment.runs_on}:
        yield from problem.quantities(kind)
    seen = set()
    for runs_on, leaf, stored_on in leaves(problem, assignment):
        if stored_on != runs_on and (stored_on, runs_on) not in seen:
            seen.add((stored_on, runs_on))
            yield from problem.movement(leaf, stored_on, runs_on).quantities


def objective_s(problem: Problem, times: dict[str, TimeBreakdown]) -> float:
    """Seconds of the whole `generate()` call, which every search minimises at a given batch size."""
    return sum(problem.weight(phase) * times[phase].total for phase in PHASES)
