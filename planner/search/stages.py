"""Several GPUs as contiguous stages: the first streams if it must, the others hold whole units.

Accelerate runs every streamed module on the first GPU, so only that one can do with less memory than
its units take. The others are filled from the end of the chain; all GPUs of a profile are equal.
"""

from collections.abc import Sequence

from planner.cost.memory_terms import kv_fragmentation_bytes, slack_bytes
from planner.cost.problem import Problem, UnitPrice
from planner.schema.breakdown import PHASES


def fill_from_end(problem: Problem, num_gpus: int, *, share: float = 1.0) -> dict[int, str]:
    """Units for GPUs 1 to `num_gpus - 1`: each takes the longest run that fits, from the chain's end.

    Args:
        problem: priced for a profile with at least `num_gpus` GPUs.
        num_gpus: how many to use.
        share: fraction of each GPU's memory that weights, cache and activations may fill.

    Returns:
        Unit index → device. Units that are pinned to the main device, or held together with modules
        elsewhere in the chain, stay with GPU 0.
    """
    movable = [
        index
        for index, unit in enumerate(problem.units)
        if unit.unit.is_chain and not unit.unit.pinned_to_main
    ]
    staged: dict[int, str] = {}
    for gpu in range(num_gpus - 1, 0, -1):
        taken: list[UnitPrice] = []
        while movable and fits(problem, [*taken, problem.units[movable[-1]]], share=share):
            index = movable.pop()
            taken.append(problem.units[index])
            staged[index] = f"gpu:{gpu}"
    return staged


def fits(problem: Problem, units: Sequence[UnitPrice], *, share: float = 1.0) -> bool:
    """Whether a GPU other than the main one holds these units, resident, in every phase."""
    gpu = problem.profile.gpu
    if gpu is None:
        return False
    available = share * (gpu.memory_bytes.value - gpu.context_bytes.value)
    weights = sum(unit.stored_bytes + unit.buffer_bytes for unit in units)
    for phase in PHASES:
        transient_bytes = sum(unit.kv[phase] for unit in units) + max(
            (u.peak[phase] for u in units), default=0
        )
        fragmentation = sum(kv_fragmentation_bytes(unit.kv[phase]) for unit in units)
        if weights + transient_bytes + slack_bytes(transient_bytes) + fragmentation > available:
            return False
    return True
