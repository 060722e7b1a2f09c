"""A model priced for one machine, one workload and one configuration: what every choice costs.

Numbers only. `planner.cost.build_problem` computes them, `planner.cost.memory` and `planner.cost.time` sum
them for one assignment, and `planner.search` finds the best assignment.
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

#: Kinds of places where a leaf can be stored: its unit's device (`gpu`, `cpu`), or a place to stream from
#: (`cpu`, `disk`, or `peers`: partitioned over the ranks' GPUs).
GPU, CPU, DISK, PEERS = "gpu", "cpu", "disk", "peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitWork:
    """Host and device work of one unit in one phase.

    Attributes:
        kernel_s: seconds of kernels on the engine (the CPU's matrix work, where the CPU runs the unit).
        dispatch_s: seconds in which the host issues them.
        hook_s: seconds of the runtime's hooks on the host.
        asynchronous: whether host and engine work at the same time, so that only the longer counts.
    """

    kernel_s: float
    dispatch_s: float
    hook_s: float
    asynchronous: bool

    def time(self, *, hooked: bool, waits: bool = False) -> TimeBreakdown:
        """The breakdown of the unit's time; host work that kernels do not hide is overhead.

        Args:
            hooked: whether the runtime has its hooks on the modules.
            waits: whether the hooks wait for the device, so that kernels do not hide their host time.
        """
        hooks = self.hook_s if hooked else 0.0
        host = self.dispatch_s + (0.0 if waits else hooks)
        overhead = max(0.0, host - self.kernel_s) if self.asynchronous else host
        return TimeBreakdown(compute=self.kernel_s, host_overhead=overhead + (hooks if waits else 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPrice:
    """The price of one leaf: one entry of the device map.

    Attributes:
        leaf: the leaf.
        stored_bytes: bytes of its parameters where they are stored.
        moved_bytes: bytes that one call copies to the device when it is streamed (a tied tensor each time).
        num_tensors: copies in which they are moved.
        forwards: phase → calls of the leaf in one forward of the model.
        streamed_peak: phase → the largest sum of live activations and the staged module, in bytes.
        streamable: False when the model uses its tensors without calling the module, so no hook fetches them.
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
    """The price of one unit of the chain.

    Attributes:
        unit: the unit.
        work: `gpu` or `cpu` → phase → work.
        kv: phase → cache bytes at the phase's end.
        peak: phase → live activation bytes while it runs.
        memory: `gpu` or `cpu` → phase → memory that it adds to a device of that kind that it runs on, without
            the parameters of its leaves.
        leaves: prices of its leaves.
    """

    unit: Unit
    work: dict[str, dict[str, UnitWork]]
    kv: dict[str, int]
    peak: dict[str, int]
    memory: Mapping[str, Mapping[str, MemoryTerm]]
    leaves: tuple[LeafPrice, ...]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the parameters of all its leaves."""
        return sum(leaf.stored_bytes for leaf in self.leaves)

    def resident(self, kind: str, phase: str) -> MemoryTerm:
        """Memory that it adds to a device that it runs on and that stores all its leaves.

        Args:
            kind: `gpu` or `cpu`.
            phase: `prefill` or `decode`.
        """
        return MemoryTerm.total((self.memory[kind][phase], MemoryTerm(weights=self.stored_bytes)))

    @property
    def offloaded_kv_bytes(self) -> int:
        """Host memory that its offloaded cache takes in the end.

        Keys and values are pinned copies. PyTorch's pinned allocator rounds each up to a power of two and
        retains the smaller blocks of earlier steps: one size for each doubling since prefill, at least one.
        """
        first, last = self.kv["prefill"], self.kv["decode"]
        if last == 0:
            return 0
        largest_copy = 1 << (last // 2 - 1).bit_length()
        doublings = max(1, math.ceil(math.log2(last / first))) if last > first > 0 else 0
        return sum(2 * largest_copy >> outgrown for outgrown in range(doublings + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Memory of a device, and the part that is in use before anything is placed on it.

    Attributes:
        total_bytes: all memory of the device.
        context_bytes: memory of the CUDA context, or of the processes that run the model.
    """

    total_bytes: int
    context_bytes: int

    @property
    def available_bytes(self) -> int:
        """Bytes that the terms of an assignment may take."""
        return self.total_bytes - self.context_bytes - SLACK_FLOOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A priced scenario: everything a search or an evaluation needs. With several ranks it is one rank's.

    Attributes:
        scenario: what is priced: model, machine, workload and configuration, as one rank sees them.
        units: prices of the placement units, in execution order.
        glue: phase → work of the modules outside every placement unit, on the main device.
        glue_peak: phase → live activation bytes while those run, sampling included.
        crossing_bytes: phase → bytes of the residual stream between two units.
        num_decode_steps: forwards after prefill.
        engines: `gpu` or `cpu` → the engine that the work was priced with.
        buffers: memory of the runtime besides the weights.
        capacities: device that modules can run on → its memory.
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
        """Kind of the main device: `gpu` or `cpu`."""
        return CPU if self.scenario.execution.main == "cpu" else GPU

    @property
    def offloaded_kv_bytes(self) -> int:
        """Host memory of an offloaded cache, of all streams together."""
        return self.scenario.execution.num_streams * sum(unit.offloaded_kv_bytes for unit in self.units)

    @property
    def disk_deficit_bytes(self) -> int:
        """Bytes missing on disk for the checkpoint and the runtime's own copy; 0 when no disk is used."""
        disk = self.scenario.profile.disk
        if disk is None or DISK not in self.scenario.execution.streams_from:
            return 0
        checkpoint = sum(unit.stored_bytes for unit in self.units)
        return max(0, checkpoint + self.buffers.disk - round(disk.capacity_bytes.value))

    def weight(self, phase: str) -> int:
        """Forwards of this phase in one `generate()` call."""
        return 1 if phase == "prefill" else self.num_decode_steps

    def movement(self, leaf: LeafPrice, stored_on: str, runs_on: str) -> Movement:
        """The movement of a leaf's weights for one of its calls.

        Args:
            leaf: the leaf.
            stored_on: where it is stored: `gpu:N`, `cpu`, `disk` or `peers`.
            runs_on: the device that its unit runs on, `gpu:N` or `cpu`.
        """
        return self.scenario.runtime_model.movement(
            self.scenario,
            num_bytes=leaf.moved_bytes,
            num_tensors=leaf.num_tensors,
            stored_on=stored_on,
            runs_on=runs_on,
        )

    def kv_movement_s(self, unit: UnitPrice, phase: str) -> float:
        """Seconds to move one unit's offloaded cache: out after each append, in before each decode step.

        A layer is copied out on the compute stream while the next one is copied in on another stream. The
        link carries both directions at once, so only the slower copy counts.
        """
        out, back = self.scenario.profile.device_to_host, self.scenario.profile.host_to_device
        num_bytes = unit.kv[phase]
        if self.scenario.execution.kv_cache == "device" or out is None or back is None or num_bytes == 0:
            return 0.0
        out_s = copy_s(num_bytes, out, pinned=True, num_copies=2)
        return out_s if phase == "prefill" else max(out_s, copy_s(num_bytes, back, pinned=True, num_copies=2))

    def crossing_s(self, phase: str) -> float:
        """Seconds to copy the residual stream to the CPU and back, for one unit that runs there."""
        out, back = self.scenario.profile.device_to_host, self.scenario.profile.host_to_device
        if out is None or back is None:
            return 0.0
        num_bytes = self.crossing_bytes[phase]
        return copy_s(num_bytes, out, pinned=False) + copy_s(num_bytes, back, pinned=False)

    def quantities(self, kind: str) -> tuple[Quantity, ...]:
        """The numbers that any work on this kind of device (`gpu` or `cpu`) was computed from."""
        host = self.scenario.profile.host
        return (*self.engines[kind].quantities, host.op_overhead_s)
