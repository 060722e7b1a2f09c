"""Bytes of one assignment, per device and phase."""

from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from planner.cost.assignment import Assignment, leaves
from planner.cost.memory_terms import (
    OFFLOADED_KV_LAYERS,
    host_fragmentation_bytes,
    host_process_bytes,
    kv_fragmentation_bytes,
    largest,
    slack_bytes,
)
from planner.cost.problem import CPU, DISK, LeafPrice, Problem, UnitPrice
from planner.schema.breakdown import PHASES, MemoryBreakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """The device that lacks most: by how many bytes, and in which phase."""

    device: str
    phase: str
    num_bytes: int


def memory(problem: Problem, assignment: Assignment) -> dict[str, dict[str, MemoryBreakdown]]:
    """Bytes per device and phase, of all ranks: their GPUs are alike, and they share the host."""
    profile = problem.profile
    result: dict[str, dict[str, MemoryBreakdown]] = {}
    spread = _spread(problem, assignment)
    if problem.execution.main != "cpu" and profile.gpu is not None:
        for index in range(problem.num_stages):
            device = f"gpu:{index}"
            used = device == problem.execution.main or device in assignment.runs_on
            if used:
                capacity, context = (
                    round(profile.gpu.memory_bytes.value),
                    round(profile.gpu.context_bytes.value),
                )
                result[device] = _device(problem, assignment, spread, device, capacity, context)
        for rank in range(1, problem.execution.num_ranks):
            result[f"gpu:{rank}"] = result[problem.execution.main]
    capacity = round(profile.host.memory_bytes.value)
    processes = problem.execution.num_ranks * host_process_bytes(profile)
    result[CPU] = _device(problem, assignment, spread, CPU, capacity, processes)
    if any(DISK in stored_on for stored_on in assignment.stored_on) and profile.disk is not None:
        stored = sum(
            leaf.stored_bytes for _, leaf, stored_on in leaves(problem, assignment) if stored_on == DISK
        )
        rest = sum(unit.stored_bytes for unit in problem.units) - stored
        on_disk = MemoryBreakdown(
            weights=stored,
            staging=rest + problem.buffers.disk,
            capacity=round(profile.disk.capacity_bytes.value),
        )
        result[DISK] = dict.fromkeys(PHASES, on_disk)
    return result


class _Spread(NamedTuple):
    """Where an assignment's leaves are.

    Attributes:
        weights: device → bytes of the weights that it holds; what is streamed from a store of everything is
            counted with the store.
        streamed: device → the leaves that it executes and does not hold.
    """

    weights: dict[str, int]
    streamed: dict[str, list[LeafPrice]]


def _spread(problem: Problem, assignment: Assignment) -> _Spread:
    """In one walk over the leaves, since a search asks it of many devices many times."""
    found = _Spread({}, {})
    for runs_on, leaf, stored_on in leaves(problem, assignment):
        if stored_on == runs_on or not problem.runtime_model.stores_all:
            found.weights[stored_on] = found.weights.get(stored_on, 0) + leaf.stored_bytes
        if stored_on != runs_on:
            found.streamed.setdefault(runs_on, []).append(leaf)
    return found


def _device(
    problem: Problem, assignment: Assignment, spread: _Spread, device: str, capacity: int, context: int
) -> dict[str, MemoryBreakdown]:
    here = [u for u, runs_on in zip(problem.units, assignment.runs_on, strict=True) if runs_on == device]
    weights = spread.weights.get(device, 0) + sum(unit.buffer_bytes for unit in here)
    streamed = spread.streamed.get(device, [])
    buffered = _buffered(problem, spread, device)
    result = {}
    for phase in PHASES:
        kv = _kv_on(problem, here, device, phase)
        activations = largest(unit.peak[phase] for unit in here)
        if device == problem.execution.main:
            activations = max(activations, problem.glue_peak[phase])
        staged = largest(leaf.streamed_peak[phase] for leaf in streamed)
        staging = max(0, staged - activations) + buffered
        transient_bytes = kv + activations + staging
        result[phase] = MemoryBreakdown(
            weights=weights,
            kv=kv,
            activations=activations,
            staging=staging,
            context=context,
            slack=slack_bytes(transient_bytes) + _fragmentation(problem, here, device, phase),
            capacity=capacity,
        )
    keeps = problem.execution.keeps_host_pages and device == problem.execution.main == CPU
    return _with_kept_pages(result) if keeps else result


def _with_kept_pages(phases: dict[str, MemoryBreakdown]) -> dict[str, MemoryBreakdown]:
    """With the holes of what the C library keeps, if it keeps anything; they never make a plan too large."""
    transient_bytes = max(part.transient_bytes for part in phases.values())
    room = min(part.capacity - part.weights - part.context for part in phases.values())
    fragmentation = host_fragmentation_bytes(transient_bytes, room)
    return {
        phase: msgspec.structs.replace(part, slack=part.slack + max(0, min(fragmentation, part.free)))
        for phase, part in phases.items()
    }


def _buffered(problem: Problem, spread: _Spread, device: str) -> int:
    """The runtime's buffers on a device; most only if anything is streamed through them or stored in them."""
    workspace = problem.buffers.workspace if device != CPU else 0
    if not spread.streamed and not problem.runtime_model.stores_all:
        return workspace
    return workspace + (problem.buffers.host if device == CPU else problem.buffers.device)


def _fragmentation(problem: Problem, here: list[UnitPrice], device: str, phase: str) -> int:
    """Fragments of a cache that lives and grows on a GPU."""
    if device == CPU:
        return 0
    return sum(kv_fragmentation_bytes(problem.device_kv_bytes(unit, phase)) for unit in here)


def _kv_on(problem: Problem, here: list[UnitPrice], device: str, phase: str) -> int:
    """Cache bytes on a device: its own units', or a few layers and the host's store of an offloaded one."""
    if problem.execution.kv_cache == "device":
        return sum(problem.device_kv_bytes(unit, phase) for unit in here)
    if device == CPU:
        return problem.offloaded_kv_bytes
    return round(OFFLOADED_KV_LAYERS[phase] * largest(unit.kv[phase] for unit in here))


def shortage(memory_by_device: dict[str, dict[str, MemoryBreakdown]]) -> Shortage | None:
    """The largest lack of bytes anywhere, or None when everything fits."""
    lacks = [
        Shortage(device=device, phase=phase, num_bytes=-part.free)
        for device, phases in memory_by_device.items()
        for phase, part in phases.items()
        if part.free < 0
    ]
    return max(lacks, key=lambda lack: lack.num_bytes, default=None)
