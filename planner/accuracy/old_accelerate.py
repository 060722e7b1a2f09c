"""Accelerate as it was when its table and BLOOM's were made (2022): its maps, and a cache that went home.

Until Accelerate 0.20 and transformers 4.30 (May 2023) outputs were sent to the device of the inputs,
`past_key_values` among them, and every layer fetched its own again (huggingface/accelerate issue 1394,
huggingface/transformers pull request 23919). So the whole cache crossed to the first GPU and back at each
token, and the first GPU held it twice: the one of the last token, and the one that replaces it.
"""

import msgspec

from planner.cost.assignment import Assignment
from planner.cost.memory_terms import host_process_bytes, largest
from planner.cost.problem import CPU, DISK, Problem, UnitPrice
from planner.cost.time_terms import copy_s
from planner.schema.breakdown import MemoryBreakdown
from planner.schema.hardware import Link

#: Caches on the first GPU while one replaces the other.
_CACHES = 2


def first_fit(problem: Problem) -> Assignment:
    """One device after the other in the order of execution, never going back.

    The first GPU and host memory keep room for the largest block, which may have to be fetched to them.
    Source: accelerate.utils.modeling.infer_auto_device_map without balancing.
    """
    profile = problem.scenario.profile
    if profile.gpu is None:
        raise ValueError(f"profile {profile.name!r} has no GPU to fill")
    room = largest(unit.stored_bytes for unit in problem.units)
    each = profile.gpu.memory_bytes.value - profile.gpu.context_bytes.value
    limits = {f"gpu:{i}": each for i in range(profile.num_gpus)}
    limits["gpu:0"] -= room
    limits[CPU] = profile.host.memory_bytes.value - host_process_bytes(profile) - room
    return _filled(problem, limits)


def low_first(problem: Problem) -> Assignment:
    """`device_map="balanced_low_0"`: the first GPU gets nothing but the cache, the others equal shares.

    A share is rounded up by the largest unit, so that the last GPU is never too small.
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
    """What loading writes and reads again when something goes to disk.

    The script then sets `offload_state_dict` too: what belongs in host memory is kept on disk until all
    shards have been read, and what belongs on disk is written anew. The disk is taken to write as it reads.
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
    """Time in which the cache of the other GPUs goes to the first, and in decode comes back before that."""
    peer = problem.scenario.profile.peer
    if peer is None:
        return 0.0
    away = _away(problem, assignment)
    home_s = sum(_moved_s(_cached(unit, phase), peer) for unit in away)
    return home_s if phase == "prefill" else 2 * home_s


def _moved_s(num_bytes: float, peer: Link) -> float:
    """Keys and values are a tensor each."""
    return copy_s(num_bytes, peer, pinned=True, num_copies=2) if num_bytes else 0.0


def _cached(unit: UnitPrice, phase: str) -> float:
    """A unit's cache at the phase's typical length."""
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
    """The memory of an assignment with the other GPUs' caches on the first one, twice, besides their own."""
    away = _away(problem, assignment)
    main = problem.scenario.execution.main
    phases = {
        phase: msgspec.structs.replace(part, kv=part.kv + _CACHES * sum(unit.kv[phase] for unit in away))
        for phase, part in memory[main].items()
    }
    return {**memory, main: phases}
