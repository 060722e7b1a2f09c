"""Seconds that a unit or a leaf adds to the whole call when it is not resident on the main device."""

from planner.cost.problem import CPU, LeafPrice, Problem, UnitPrice
from planner.cost.time import unit_time
from planner.schema.breakdown import PHASES


def cpu_premium_s(problem: Problem, unit: UnitPrice) -> float:
    """Seconds that running one unit on the CPU adds to the whole call, compared with the main device."""
    hooked = problem.scenario.runtime_model.hooks != "never"

    def seconds(device: str, phase: str) -> float:
        stored_on = (device,) * len(unit.leaves)
        return unit_time(problem, unit, device, stored_on, phase, hooked=hooked).total

    return sum(
        problem.weight(phase) * (seconds(CPU, phase) - seconds(problem.scenario.execution.main, phase))
        for phase in PHASES
    )


def streaming_s(problem: Problem, leaf: LeafPrice, stored_on: str) -> float:
    """Seconds that streaming one leaf to the main device adds to the whole call.

    Args:
        problem: the priced scenario.
        leaf: one of its leaves.
        stored_on: the place that it is streamed from: `cpu`, `disk` or `peers`.
    """
    movement = problem.movement(leaf, stored_on, problem.scenario.execution.main)
    forwards = sum(problem.weight(phase) * leaf.forwards[phase] for phase in PHASES)
    return forwards * (movement.copy_s + movement.host_s)
