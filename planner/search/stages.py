"""Several GPUs as contiguous pipeline stages: the first streams if it must, the others hold whole units.

Accelerate runs every streamed module on the first GPU, so only that one can run units that exceed its memory.
The others are filled from the end of the chain; all GPUs of a profile are equal.
"""

from collections.abc import Sequence

from planner.cost.memory import device_memory
from planner.cost.problem import Problem, UnitPrice


def fill_from_end(problem: Problem, num_gpus: int, *, share: float = 1.0) -> dict[int, str]:
    """Units for GPUs 1 to `num_gpus - 1`: each takes as many consecutive units as fit, from the chain's end.

    Args:
        problem: a priced scenario of a profile with at least `num_gpus` GPUs.
        num_gpus: GPUs to use, the main one included.
        share: fraction of each GPU's memory that weights, cache and activations may fill, from 0 to 1.

    Returns:
        Unit index → device. Units that are pinned to the main device, or joined with modules at other
        positions of the chain, stay on GPU 0.
    """
    movable = [
        index
        for index, unit in enumerate(problem.units)
        if unit.unit.is_chain and not unit.unit.pinned_to_main
    ]
    staged: dict[int, str] = {}
    for gpu in range(num_gpus - 1, 0, -1):
        device, taken = f"gpu:{gpu}", list[UnitPrice]()
        while movable and fits(problem, device, [*taken, problem.units[movable[-1]]], share=share):
            index = movable.pop()
            taken.append(problem.units[index])
            staged[index] = device
    return staged


def fits(problem: Problem, device: str, units: Sequence[UnitPrice], *, share: float = 1.0) -> bool:
    """Whether a GPU other than the main one has memory for these units, resident, in every phase.

    Args:
        problem: the priced scenario.
        device: the GPU, `gpu:N`.
        units: the units that it would run and store.
        share: fraction of its memory, without the CUDA context, that may be filled, from 0 to 1.
    """
    if device not in problem.capacities:
        return False
    weights = sum(unit.stored_bytes for unit in units)
    phases = device_memory(problem, device, units, weights_bytes=weights)
    return all(
        part.total - part.context <= share * (part.capacity - part.context) for part in phases.values()
    )
