"""Memory of an assignment: bytes per device and phase. The one place where its parts are added.

What a unit, a leaf and the runtime add to a device are linear terms (`MemoryTerm`). Evaluation adds them up
here, the search's integer program has them as coefficients, and pipeline stages are filled by the same sum.
Activations and streamed modules are no terms: they replace each other in time, so only their maximum counts.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from planner.cost.assignment import Assignment, kind_of, leaves
from planner.cost.memory_terms import (
    KEPT_PAGES_ROOM,
    OFFLOADED_KV_LAYERS,
    MemoryTerm,
    host_fragmentation_bytes,
    largest,
    slack_bytes,
)
from planner.cost.problem import CPU, DISK, LeafPrice, Problem, UnitPrice
from planner.schema.breakdown import PHASES, MemoryBreakdown


def memory(problem: Problem, assignment: Assignment) -> dict[str, dict[str, MemoryBreakdown]]:
    """Memory of all ranks as device → phase → bytes; the disk is listed when something is stored on it.

    Every rank's GPU holds the same bytes, and the ranks share the host.
    """
    execution = problem.scenario.execution
    spread = _spread(problem, assignment)
    result: dict[str, dict[str, MemoryBreakdown]] = {}
    for device in problem.capacities:
        if device in (execution.main, CPU) or device in assignment.runs_on:
            result[device] = _of_device(problem, assignment, spread, device)
    for rank in range(1, execution.num_ranks if execution.main != CPU else 1):
        result[f"gpu:{rank}"] = result[execution.main]
    # Moved to the end: tables list the host after the GPUs.
    result[CPU] = result.pop(CPU)
    disk = problem.scenario.profile.disk
    if any(DISK in stored_on for stored_on in assignment.stored_on) and disk is not None:
        stored = spread.stored[DISK]
        rest = sum(unit.stored_bytes for unit in problem.units) - stored
        on_disk = MemoryBreakdown(
            weights=stored,
            staging=rest + problem.buffers.disk,
            capacity=round(disk.capacity_bytes.value),
        )
        result[DISK] = dict.fromkeys(PHASES, on_disk)
    return result


class _Spread(NamedTuple):
    """Where an assignment's leaves are.

    Attributes:
        stored: place → bytes of all weights that are stored there.
        charged: device → bytes of the weights that are counted as stored there; what is streamed from a store
            that holds every weight is counted with that store, in `Buffers`.
        streamed: device → the leaves that run on it and are stored elsewhere.
    """

    stored: dict[str, int]
    charged: dict[str, int]
    streamed: dict[str, list[LeafPrice]]


def _spread(problem: Problem, assignment: Assignment) -> _Spread:
    """All three tables in one pass over the leaves, because a search computes them many times."""
    spread = _Spread({}, {}, {})
    for runs_on, leaf, stored_on in leaves(problem, assignment):
        spread.stored[stored_on] = spread.stored.get(stored_on, 0) + leaf.stored_bytes
        charge = stored_weights(problem, leaf, stored_on, runs_on).weights
        spread.charged[stored_on] = spread.charged.get(stored_on, 0) + charge
        if stored_on != runs_on:
            spread.streamed.setdefault(runs_on, []).append(leaf)
    return spread


def _of_device(
    problem: Problem, assignment: Assignment, spread: _Spread, device: str
) -> dict[str, MemoryBreakdown]:
    here = [u for u, runs_on in zip(problem.units, assignment.runs_on, strict=True) if runs_on == device]
    phases = device_memory(
        problem,
        device,
        here,
        weights_bytes=spread.charged.get(device, 0),
        streamed=spread.streamed.get(device, ()),
        streams=bool(spread.streamed),
    )
    execution = problem.scenario.execution
    keeps = execution.keeps_host_pages and device == execution.main == CPU
    return _with_kept_pages(phases) if keeps else phases


def device_memory(
    problem: Problem,
    device: str,
    units: Sequence[UnitPrice],
    *,
    weights_bytes: int,
    streamed: Iterable[LeafPrice] = (),
    streams: bool = False,
) -> dict[str, MemoryBreakdown]:
    """Memory of one device: its terms, the largest of activations and streamed modules, and the slack.

    Args:
        problem: the priced scenario.
        device: `gpu:N` or `cpu`.
        units: those that run on the device.
        weights_bytes: bytes of the parameters that are counted as stored on the device.
        streamed: leaves that run on the device and are stored elsewhere.
        streams: whether the assignment streams anything, to any device.

    Returns:
        Phase → bytes.
    """
    capacity, kind = problem.capacities[device], kind_of(device)
    streamed = tuple(streamed)
    result = {}
    for phase in PHASES:
        term = MemoryTerm.total(
            (
                MemoryTerm(weights=weights_bytes),
                runtime_term(problem, units, device, phase, streams=streams),
                *(unit.memory[kind][phase] for unit in units),
            )
        )
        activations = least_peak(problem, units, device, phase)
        staged = largest(leaf.streamed_peak[phase] for leaf in streamed)
        staging = term.staging + max(0, staged - activations)
        transient = term.kv + activations + staging
        result[phase] = MemoryBreakdown(
            weights=term.weights,
            kv=term.kv,
            activations=activations,
            staging=staging,
            context=capacity.context_bytes,
            slack=slack_bytes(transient) + term.fragmentation,
            capacity=capacity.total_bytes,
        )
    return result


def stored_weights(problem: Problem, leaf: LeafPrice, stored_on: str, runs_on: str) -> MemoryTerm:
    """What a leaf's parameters add to the place where they are stored.

    Nothing where the runtime streams them from a store that holds every weight: `Buffers` counts that store.

    Args:
        problem: the priced scenario.
        leaf: one of its leaves.
        stored_on: `gpu:N`, `cpu`, `disk` or `peers`.
        runs_on: the device that the leaf's unit runs on, `gpu:N` or `cpu`.
    """
    in_store = stored_on != runs_on and problem.scenario.runtime_model.stores_all
    return MemoryTerm(weights=0 if in_store else leaf.stored_bytes)


def runtime_term(
    problem: Problem, units: Iterable[UnitPrice], device: str, phase: str, *, streams: bool
) -> MemoryTerm:
    """What a device holds besides its units: the runtime's buffers, and its part of an offloaded cache.

    Args:
        problem: the priced scenario.
        units: those that may run on the device.
        device: `gpu:N` or `cpu`.
        phase: `prefill` or `decode`.
        streams: whether the assignment streams anything. Most buffers exist only then, or where the runtime
            keeps every weight in them.
    """
    buffers = problem.buffers
    staging = buffers.workspace if device != CPU else 0
    if streams or problem.scenario.runtime_model.stores_all:
        staging += buffers.host if device == CPU else buffers.device
    if problem.scenario.execution.kv_cache == "device":
        return MemoryTerm(staging=staging)
    if device == CPU:
        return MemoryTerm(staging=staging, kv=problem.offloaded_kv_bytes)
    layers = OFFLOADED_KV_LAYERS[phase]
    return MemoryTerm(staging=staging, kv=round(layers * largest(unit.kv[phase] for unit in units)))


def least_peak(problem: Problem, units: Iterable[UnitPrice], device: str, phase: str) -> int:
    """Peak activation bytes on a device that runs `units`, without what is streamed to it.

    Args:
        problem: the priced scenario.
        units: those that run on the device.
        device: `gpu:N` or `cpu`; the main device also runs the modules outside every placement unit.
        phase: `prefill` or `decode`.
    """
    glue = problem.glue_peak[phase] if device == problem.scenario.execution.main else 0
    return max(glue, largest(unit.peak[phase] for unit in units))


def _with_kept_pages(phases: dict[str, MemoryBreakdown]) -> dict[str, MemoryBreakdown]:
    """The phases with the fragmentation of retained heap pages, if pages are retained, in their slack.

    It is limited to the free bytes: it never makes a plan infeasible.
    """
    transient, room = _transient_and_room(phases)
    fragmentation = host_fragmentation_bytes(transient, room)
    return {
        phase: msgspec.structs.replace(part, slack=part.slack + max(0, min(fragmentation, part.free)))
        for phase, part in phases.items()
    }


def kept_pages_max_tokens(problem: Problem, phases: dict[str, MemoryBreakdown]) -> int | None:
    """The most tokens of a call with which an emitted script retains heap pages; None where it never does.

    Transient bytes grow with the tokens of all sequences, prompt and new ones.

    Args:
        problem: the priced scenario.
        phases: phase → predicted host memory.
    """
    execution, workload = problem.scenario.execution, problem.scenario.workload
    if execution.main != CPU or not execution.keeps_host_pages:
        return None
    transient, room = _transient_and_room(phases)
    planned = problem.scenario.num_sequences * (workload.prompt_tokens + workload.new_tokens)
    return max(0, math.floor(room * planned / (KEPT_PAGES_ROOM * transient))) if transient else None


def _transient_and_room(phases: dict[str, MemoryBreakdown]) -> tuple[int, int]:
    transient = max(part.transient_bytes for part in phases.values())
    room = min(part.capacity - part.weights - part.context for part in phases.values())
    return transient, room
