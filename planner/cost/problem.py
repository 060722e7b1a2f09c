"""A model priced for one machine, one workload and one way to run: what every choice costs.

Pure numbers. `planner.cost.build_problem` makes them, `planner.cost.memory` and `planner.cost.time` sum them
for one assignment, and `planner.search` finds the best one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from planner.cost.memory_terms import SLACK_FLOOR_BYTES, MemoryTerm
from planner.cost.placement_units import Leaf, Unit
from planner.cost.runtime_model import Buffers, Movement, Scenario
from planner.cost.time_terms import Engine, copy_s
from planner.schema.breakdown import TimeBreakdown
from planner.schema.quantity import Quantity

#: Where a leaf can live, given where its unit executes: the device itself, or a place to stream from.
GPU, CPU, DISK, PEERS = "gpu", "cpu", "disk", "peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitWork:
    """Host and device work of one unit in one phase: the device runs behind the host, or is it.

    Attributes:
        kernel_s: time on the engine.
        dispatch_s: host time to issue it.
        hook_s: host time of the runtime's hooks.
        asynchronous: whether the longer of the two hides the other.
    """

    kernel_s: float
    dispatch_s: float
    hook_s: float
    asynchronous: bool

    def time(self, *, hooked: bool, waits: bool = False) -> TimeBreakdown:
        """As a breakdown: what the host does beyond the kernels is overhead.

        Args:
            hooked: whether the runtime's hooks are on the modules.
            waits: whether they wait for the device, so that the host cannot run ahead of it in them.
        """
        hooks = self.hook_s if hooked else 0.0
        host = self.dispatch_s + (0.0 if waits else hooks)
        overhead = max(0.0, host - self.kernel_s) if self.asynchronous else host
        return TimeBreakdown(compute=self.kernel_s, host_overhead=overhead + (hooks if waits else 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPrice:
    """One entry of the device map.

    Attributes:
        leaf: which.
        stored_bytes: what it takes where it lives.
        moved_bytes: what one forward brings to the device when it is streamed (a tied tensor each time).
        num_tensors: how many copies that is.
        forwards: forwards of it in each phase.
        streamed_peak: phase → live activations plus its own staged module, at the worst.
        streamable: False when the model uses its tensors without calling it: no hook would fetch them.
    """

    leaf: Leaf
    stored_bytes: int
    moved_bytes: int
    num_tensors: int
    forwards: dict[str, int]
    streamed_peak: dict[str, int]
    streamable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """One unit of the chain.

    Attributes:
        unit: which.
        work: `gpu` or `cpu` → phase → work.
        kv: phase → cache bytes at the phase's end.
        peak: phase → live activation bytes while it runs.
        memory: `gpu` or `cpu` → phase → what it adds to a device of that kind that it runs on, without the
            parameters of its leaves.
        leaves: its entries.
    """

    unit: Unit
    work: dict[str, dict[str, UnitWork]]
    kv: dict[str, int]
    peak: dict[str, int]
    memory: Mapping[str, Mapping[str, MemoryTerm]]
    leaves: tuple[LeafPrice, ...]

    @property
    def stored_bytes(self) -> int:
        """Weights of all its leaves."""
        return sum(leaf.stored_bytes for leaf in self.leaves)

    def resident(self, kind: str, phase: str) -> MemoryTerm:
        """What it adds to a device that it runs on and that stores all its leaves.

        Args:
            kind: `gpu` or `cpu`.
            phase: `prefill` or `decode`.
        """
        return MemoryTerm.total((self.memory[kind][phase], MemoryTerm(weights=self.stored_bytes)))

    @property
    def offloaded_kv_bytes(self) -> int:
        """Host memory that its offloaded cache comes to hold.

        Keys and values are pinned copies, and PyTorch's pinned allocator rounds each up to a power of two
        and keeps the smaller ones it has outgrown: one size for each doubling since prefill, at least one.
        """
        first, last = self.kv["prefill"], self.kv["decode"]
        if last == 0:
            return 0
        largest_copy = 1 << (last // 2 - 1).bit_length()
        doublings = max(1, math.ceil(math.log2(last / first))) if last > first > 0 else 0
        return sum(2 * largest_copy >> outgrown for outgrown in range(doublings + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a device has, and what is gone before anything is placed on it.

    Attributes:
        total_bytes: of the device.
        context_bytes: the CUDA context, or the processes that run the model.
    """

    total_bytes: int
    context_bytes: int

    @property
    def available_bytes(self) -> int:
        """What the terms of an assignment may charge."""
        return self.total_bytes - self.context_bytes - SLACK_FLOOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything a search or an evaluation needs. With several ranks it is one rank's problem.

    Attributes:
        scenario: what is priced: model, machine, workload and configuration, as one rank sees them.
        units: priced, in execution order.
        glue: phase → work of modules outside every unit, on the main device.
        glue_peak: phase → live activation bytes while that runs, sampling included.
        crossing_bytes: phase → bytes of the residual stream between two units.
        num_decode_steps: forwards after prefill.
        engines: what it was priced with.
        buffers: what the runtime takes besides the weights.
        capacities: device that modules can run on → what it has.
        communication_s: phase → seconds of one forward in which the ranks exchange results.
    """

    scenario: Scenario
    units: tuple[UnitPrice, ...]
    glue: dict[str, UnitWork]
    glue_peak: dict[str, int]
    crossing_bytes: dict[str, int]
    num_decode_steps: int
    engines: dict[str, Engine]
    buffers: Buffers
    capacities: dict[str, Capacity]
    communication_s: Mapping[str, float]

    @property
    def main_kind(self) -> str:
        """`gpu` or `cpu`."""
        return CPU if self.scenario.execution.main == "cpu" else GPU

    @property
    def offloaded_kv_bytes(self) -> int:
        """Host memory of an offloaded cache, of all streams together."""
        return self.scenario.execution.num_streams * sum(unit.offloaded_kv_bytes for unit in self.units)

    @property
    def disk_deficit_bytes(self) -> int:
        """What the disk lacks to hold the checkpoint and the runtime's own copy; 0 when it is not used."""
        disk = self.scenario.profile.disk
        if disk is None or DISK not in self.scenario.execution.streams_from:
            return 0
        checkpoint = sum(unit.stored_bytes for unit in self.units)
        return max(0, checkpoint + self.buffers.disk - round(disk.capacity_bytes.value))

    def weight(self, phase: str) -> int:
        """How many forwards of this phase one `generate()` makes."""
        return 1 if phase == "prefill" else self.num_decode_steps

    def movement(self, leaf: LeafPrice, stored_on: str, runs_on: str) -> Movement:
        """One forward's movement of a leaf's weights."""
        return self.scenario.runtime_model.movement(
            self.scenario,
            num_bytes=leaf.moved_bytes,
            num_tensors=leaf.num_tensors,
            stored_on=stored_on,
            runs_on=runs_on,
        )

    def kv_movement_s(self, unit: UnitPrice, phase: str) -> float:
        """Moving an offloaded cache: out after each append, and back in before each decode step.

        A layer goes out on the stream that computes while the next one comes in on another, the other way
        over a link that carries both at once: the slower of the two shows.
        """
        out, back = self.scenario.profile.device_to_host, self.scenario.profile.host_to_device
        num_bytes = unit.kv[phase]
        if self.scenario.execution.kv_cache == "device" or out is None or back is None or num_bytes == 0:
            return 0.0
        out_s = copy_s(num_bytes, out, pinned=True, num_copies=2)
        return out_s if phase == "prefill" else max(out_s, copy_s(num_bytes, back, pinned=True, num_copies=2))

    def crossing_s(self, phase: str) -> float:
        """Taking the residual stream to the CPU and back, for one unit that executes there."""
        out, back = self.scenario.profile.device_to_host, self.scenario.profile.host_to_device
        if out is None or back is None:
            return 0.0
        num_bytes = self.crossing_bytes[phase]
        return copy_s(num_bytes, out, pinned=False) + copy_s(num_bytes, back, pinned=False)

    def quantities(self, kind: str) -> tuple[Quantity, ...]:
        """Numbers behind any work on this kind of device."""
        host = self.scenario.profile.host
        return (*self.engines[kind].quantities, host.op_overhead_s)
