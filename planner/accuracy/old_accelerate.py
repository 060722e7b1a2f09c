"""Accelerate as of 2022, with which its own table and BLOOM's were measured: device maps and KV cache.

Until Accelerate 0.20 and transformers 4.30 (May 2023) the outputs were sent to the device of the inputs,
including `past_key_values`, and every layer fetched its part of the cache again (huggingface/accelerate issue
1394, huggingface/transformers pull request 23919). At each token the whole cache was therefore copied to the
first GPU and back, and the first GPU held it twice: the cache of the last token and its replacement.
"""

import msgspec

from planner.cost.assignment import Assignment
from planner.cost.memory_terms import host_process_bytes, largest
from planner.cost.problem import CPU, DISK, Problem, UnitPrice
from planner.cost.time_terms import copy_s
from planner.schema.breakdown import MemoryBreakdown
from planner.schema.hardware import Link

#: Copies of the cache on the first GPU while one replaces the other.
_CACHES = 2


def first_fit(problem: Problem) -> Assignment:
    """Fill one device after another, in the order of execution.

    The first GPU and host memory reserve room for the largest block, which may have to be streamed to them.
    Source: accelerate.utils.modeling.infer_auto_device_map without balancing.
    """
    profile = problem.scenario.profile
    if profile.gpu is None:
        raise ValueError(f"profile {profile.name!r} has no GPU")
    room = largest(unit.stored_bytes for unit in problem.units)
    each = profile.gpu.memory_bytes.value - profile.gpu.context_bytes.value
    limits = {f"gpu:{i}": each for i in range(profile.num_gpus)}
    limits["gpu:0"] -= room
    limits[CPU] = profile.host.memory_bytes.value - host_process_bytes(profile) - room
    return _filled(problem, limits)


def low_first(problem: Problem) -> Assignment:
    """`device_map="balanced_low_0"`: the first GPU holds only the cache, the others equal shares of weights.

    A share is enlarged by a unit of median size, so that the last GPU is not too small.
    Source: accelerate.utils.modeling.get_balanced_memory with low_zero.
    """
    others = problem.scenario.profile.num_gpus - 1
    sizes = [unit.stored_bytes for unit in problem.units]
    share = sum(sizes) / others + sorted(sizes)[len(sizes) // 2]
    return _filled(problem, {f"gpu:{i}": share for i in range(1, others + 1)})


def _filled(problem: Problem, limits: dict[str, float]) -> Assignment:
    left = dict(limits)
    names = [*left, DISK]
    places = []
    for unit in problem.units:
        held = unit.resident(CPU, "prefill").weights
        while names[0] != DISK and held > left[names[0]]:
            names.pop(0)
        if names[0] != DISK:
            left[names[0]] -= held
        places.append(names[0])
    main = problem.scenario.execution.main
    return Assignment(
        runs_on=tuple(place if place.startswith("gpu:") else main for place in places),
        stored_on=tuple(
            (place,) * len(unit.leaves) for place, unit in zip(places, problem.units, strict=True)
        ),
    )


def offloading_s(problem: Problem, assignment: Assignment) -> float:
    """Seconds for which loading writes to the disk and reads back; 0 when no weights are stored on the disk.

    With weights on the disk the script also sets `offload_state_dict`: weights for host memory are written to
    the disk and read back when all shards have been read, and weights for the disk are written again. The
    write rate is assumed to equal the read rate.
    """
    disk = problem.scenario.profile.disk
    places = [
        (place, leaf.stored_bytes)
        for unit, stored_on in zip(problem.units, assignment.stored_on, strict=True)
        for leaf, place in zip(unit.leaves, stored_on, strict=True)
    ]
    to_disk = sum(num_bytes for place, num_bytes in places if place == DISK)
    if disk is None or to_disk == 0:
        return 0.0
    to_host = sum(num_bytes for place, num_bytes in places if place == CPU)
    return (to_disk + 2 * to_host) / disk.read_bytes_per_s.value


def returned_cache_s(problem: Problem, assignment: Assignment, phase: str) -> float:
    """Seconds of one step in which the other GPUs' cache is copied to the first GPU, and back in decode.

    Args:
        problem: the priced problem.
        assignment: the placement.
        phase: `prefill` or `decode`.
    """
    peer = problem.scenario.profile.peer
    if peer is None:
        return 0.0
    away = _away(problem, assignment)
    return_s = sum(_moved_s(_cached(unit, phase), peer) for unit in away)
    return return_s if phase == "prefill" else 2 * return_s


def _moved_s(num_bytes: float, peer: Link) -> float:
    """Seconds to copy a unit's cache, as two tensors: keys and values."""
    return copy_s(num_bytes, peer, pinned=True, num_copies=2) if num_bytes else 0.0


def _cached(unit: UnitPrice, phase: str) -> float:
    """Bytes of a unit's cache: at the end of prefill, or on average over the decode steps."""
    first, last = unit.kv["prefill"], unit.kv["decode"]
    return first if phase == "prefill" else (first + last) / 2


def _away(problem: Problem, assignment: Assignment) -> list[UnitPrice]:
    main = problem.scenario.execution.main
    return [
        unit
        for unit, runs_on in zip(problem.units, assignment.runs_on, strict=True)
        if runs_on != main and runs_on != CPU
    ]


def with_returned_cache(
    problem: Problem, assignment: Assignment, memory: dict[str, dict[str, MemoryBreakdown]]
) -> dict[str, dict[str, MemoryBreakdown]]:
    """Add two copies of the other GPUs' cache to the memory of the first GPU.

    Args:
        problem: the priced problem.
        assignment: the placement.
        memory: device → phase → memory of the placement.

    Returns:
        The memory in the same form; the other GPUs keep their own caches.
    """
    away = _away(problem, assignment)
    main = problem.scenario.execution.main
    phases = {
        phase: msgspec.structs.replace(part, kv=part.kv + _CACHES * sum(unit.kv[phase] for unit in away))
        for phase, part in memory[main].items()
    }
    return {**memory, main: phases}
