"""What one assignment takes: bytes on every device in each phase, and seconds.

The search optimises exactly these sums; `planner predict` prices any map with them.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from planner.breakdown import PHASES, MemoryBreakdown, TimeBreakdown, total_time
from planner.memory import (
    OFFLOADED_KV_LAYERS,
    host_process_bytes,
    kv_holes_bytes,
    largest,
    slack_bytes,
)
from planner.plan import Prediction
from planner.problem import CPU, DISK, GPU, LeafPrice, Problem, UnitPrice
from planner.runtimes.base import Law
from planner.sources import Quantity, weakest
from planner.time import copy_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One choice for every unit and leaf of a problem.

    Attributes:
        executes: per unit, `gpu:N` or `cpu`.
        lives: per unit and leaf, the unit's device, or a place to stream from: `cpu`, `disk` or `peers`.
    """

    executes: tuple[str, ...]
    lives: tuple[tuple[str, ...], ...]

    @property
    def places(self) -> frozenset[str]:
        """Every device that something lives or executes on."""
        return frozenset(self.executes).union(*self.lives) if self.lives else frozenset(self.executes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """The device that lacks most: by how many bytes, and in which phase."""

    device: str
    phase: str
    num_bytes: int


def kind_of(device: str) -> str:
    """`gpu:3` is a `gpu`."""
    return GPU if device.startswith("gpu:") else device


def memory(problem: Problem, assignment: Assignment) -> dict[str, dict[str, MemoryBreakdown]]:
    """Bytes per device and phase, of all ranks: their GPUs are alike, and they share the host."""
    profile = problem.profile
    result: dict[str, dict[str, MemoryBreakdown]] = {}
    spread = _spread(problem, assignment)
    if problem.settings.main != "cpu" and profile.gpu is not None:
        for index in range(problem.num_stages):
            device = f"gpu:{index}"
            used = device == problem.settings.main or device in assignment.executes
            if used:
                capacity, context = (
                    round(profile.gpu.memory_bytes.value),
                    round(profile.gpu.context_bytes.value),
                )
                result[device] = _device(problem, assignment, spread, device, capacity, context)
        for rank in range(1, problem.settings.num_ranks):
            result[f"gpu:{rank}"] = result[problem.settings.main]
    capacity = round(profile.host.memory_bytes.value)
    processes = problem.settings.num_ranks * host_process_bytes(profile)
    result[CPU] = _device(problem, assignment, spread, CPU, capacity, processes)
    if any(DISK in lives for lives in assignment.lives) and profile.disk is not None:
        stored = sum(leaf.stored_bytes for _, leaf, lives in _leaves(problem, assignment) if lives == DISK)
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
    for executes, leaf, lives in _leaves(problem, assignment):
        if lives == executes or not problem.law.stores_all:
            found.weights[lives] = found.weights.get(lives, 0) + leaf.stored_bytes
        if lives != executes:
            found.streamed.setdefault(executes, []).append(leaf)
    return found


def _device(
    problem: Problem, assignment: Assignment, spread: _Spread, device: str, capacity: int, context: int
) -> dict[str, MemoryBreakdown]:
    here = [u for u, executes in zip(problem.units, assignment.executes, strict=True) if executes == device]
    weights = spread.weights.get(device, 0) + sum(unit.buffer_bytes for unit in here)
    streamed = spread.streamed.get(device, [])
    buffered = _buffered(problem, spread, device)
    result = {}
    for phase in PHASES:
        kv = _kv_on(problem, here, device, phase)
        activations = largest(unit.peak[phase] for unit in here)
        if device == problem.settings.main:
            activations = max(activations, problem.glue_peak[phase])
        staged = largest(leaf.streamed_peak[phase] for leaf in streamed)
        staging = max(0, staged - activations) + buffered
        moving = kv + activations + staging
        result[phase] = MemoryBreakdown(
            weights=weights,
            kv=kv,
            activations=activations,
            staging=staging,
            context=context,
            slack=slack_bytes(moving) + _holes(problem, here, device, phase),
            capacity=capacity,
        )
    return result


def _buffered(problem: Problem, spread: _Spread, device: str) -> int:
    """The runtime's buffers on a device; most only if anything is streamed through them or stored in them."""
    workspace = problem.buffers.workspace if device != CPU else 0
    if not spread.streamed and not problem.law.stores_all:
        return workspace
    return workspace + (problem.buffers.host if device == CPU else problem.buffers.device)


def _holes(problem: Problem, here: list[UnitPrice], device: str, phase: str) -> int:
    """Fragments of a cache that lives and grows on a GPU."""
    if device == CPU:
        return 0
    return sum(kv_holes_bytes(problem.device_kv_bytes(unit, phase)) for unit in here)


def _kv_on(problem: Problem, here: list[UnitPrice], device: str, phase: str) -> int:
    """Cache bytes on a device: its own units', or a few layers and the host's store of an offloaded one."""
    if problem.settings.kv_cache == "device":
        return sum(problem.device_kv_bytes(unit, phase) for unit in here)
    if device == CPU:
        return problem.offloaded_kv_bytes
    return round(OFFLOADED_KV_LAYERS[phase] * largest(unit.kv[phase] for unit in here))


def _leaves(problem: Problem, assignment: Assignment) -> Iterable[tuple[str, LeafPrice, str]]:
    for unit, executes, lives in zip(problem.units, assignment.executes, assignment.lives, strict=True):
        for leaf, place in zip(unit.leaves, lives, strict=True):
            yield executes, leaf, place


def shortage(memory_by_device: dict[str, dict[str, MemoryBreakdown]]) -> Shortage | None:
    """The largest lack of bytes anywhere, or None when everything fits."""
    lacks = [
        Shortage(device=device, phase=phase, num_bytes=-part.free)
        for device, phases in memory_by_device.items()
        for phase, part in phases.items()
        if part.free < 0
    ]
    return max(lacks, key=lambda lack: lack.num_bytes, default=None)


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
    for executes, leaf, lives in _leaves(problem, assignment):
        if lives != executes and (lives, executes) not in seen:
            seen.add((lives, executes))
            yield from problem.movement(leaf, lives, executes).quantities


def objective_s(problem: Problem, times: dict[str, TimeBreakdown]) -> float:
    """Seconds of the whole `generate()` call: what every search minimises at a given batch."""
    return sum(problem.weight(phase) * times[phase].total for phase in PHASES)


def predict(problem: Problem, assignment: Assignment) -> Prediction:
    """Memory and time of one assignment, with everything that follows from them."""
    times = time(problem, assignment)
    total_s = objective_s(problem, times)
    workload = problem.workload
    tokens = problem.num_sequences * (
        workload.new_tokens if problem.graph.generates else workload.prompt_tokens
    )
    tokens_per_s = tokens / total_s if total_s > 0 else 0.0
    price = problem.profile.usd_per_hour
    sources = [times[phase].source for phase in PHASES]
    return Prediction(
        memory=memory(problem, assignment),
        time=times,
        total_s=total_s,
        tokens_per_s=tokens_per_s,
        usd_per_million_tokens=(
            price.value / 3600 / tokens_per_s * 1e6 if price is not None and tokens_per_s > 0 else None
        ),
        load_s=_load_s(problem, assignment),
        source=weakest(sources),
    )


def _load_s(problem: Problem, assignment: Assignment) -> float:
    """Reading what must be read once, and copying to the GPUs what lives there."""
    read = sum(
        leaf.stored_bytes
        for _, leaf, lives in _leaves(problem, assignment)
        if lives != DISK or problem.law.stores_all
    )
    on_gpu = sum(
        leaf.stored_bytes for _, leaf, lives in _leaves(problem, assignment) if lives.startswith("gpu:")
    )
    return problem.law.load_s(
        read_bytes=read, device_bytes=on_gpu, settings=problem.settings, profile=problem.profile
    )
