"""Predictions as breakdowns: the parts of a number, and for time the weakest source among them."""

from collections.abc import Iterable, Mapping

import msgspec

from planner.schema.quantity import Source, weakest

#: The two phases of generation, in order.
PHASES = ("prefill", "decode")


class MemoryBreakdown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Peak bytes on one device in one phase.

    Attributes:
        weights: parameters and buffers that are stored there.
        kv: KV cache (and other recurrent state) at the end of the phase.
        activations: live intermediate results.
        staging: copies of streamed weights, and buffers that streaming needs.
        context: CUDA context and library workspaces; on the host, the processes themselves.
        slack: bytes that the allocator holds beyond live ones.
        capacity: all memory of the device.
    """

    weights: int = 0
    kv: int = 0
    activations: int = 0
    staging: int = 0
    context: int = 0
    slack: int = 0
    capacity: int = 0

    @property
    def transient_bytes(self) -> int:
        """Bytes that are allocated and freed during a forward, with the cache, which grows by copying."""
        return self.kv + self.activations + self.staging

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.transient_bytes + self.context + self.slack

    @property
    def free(self) -> int:
        """Capacity that is not used; negative when the device's memory is exceeded."""
        return self.capacity - self.total


def worst_by_device(memory: Mapping[str, Mapping[str, MemoryBreakdown]]) -> dict[str, MemoryBreakdown]:
    """Each device in the phase in which it uses most; consecutive equal GPUs become one, as `gpu:0-7`."""
    rows: list[tuple[str, str, MemoryBreakdown]] = []
    for device, phases in memory.items():
        worst = max(phases.values(), key=lambda part: part.total)
        if rows and device.startswith("gpu:") and rows[-1][0].startswith("gpu:") and rows[-1][2] == worst:
            rows[-1] = (rows[-1][0], device, worst)
        else:
            rows.append((device, device, worst))
    return {
        first if first == last else f"{first}-{last.removeprefix('gpu:')}": worst
        for first, last, worst in rows
    }


class TimeBreakdown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of one phase: one prefill, or one decode step for the whole batch.

    Attributes:
        compute: kernels on the device, or matrix work on the CPU.
        weight_movement: copying streamed weights, where computing does not hide it.
        kv_movement: copying an offloaded KV cache.
        communication: exchanging activations between devices.
        host_overhead: dispatching operations and hooks, where the kernels do not hide it.
        source: the weakest source of any number in it.
    """

    compute: float = 0.0
    weight_movement: float = 0.0
    kv_movement: float = 0.0
    communication: float = 0.0
    host_overhead: float = 0.0
    source: Source = Source.MEASURED

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return (
            self.compute + self.weight_movement + self.kv_movement + self.communication + self.host_overhead
        )

    def __add__(self, other: "TimeBreakdown") -> "TimeBreakdown":
        return TimeBreakdown(
            compute=self.compute + other.compute,
            weight_movement=self.weight_movement + other.weight_movement,
            kv_movement=self.kv_movement + other.kv_movement,
            communication=self.communication + other.communication,
            host_overhead=self.host_overhead + other.host_overhead,
            source=weakest((self.source, other.source)),
        )

    def scaled(self, factor: float) -> "TimeBreakdown":
        """The time of `factor` such phases one after another."""
        return TimeBreakdown(
            compute=self.compute * factor,
            weight_movement=self.weight_movement * factor,
            kv_movement=self.kv_movement * factor,
            communication=self.communication * factor,
            host_overhead=self.host_overhead * factor,
            source=self.source,
        )


def total_time(parts: Iterable[TimeBreakdown]) -> TimeBreakdown:
    """The sum of `parts`."""
    result = TimeBreakdown()
    for part in parts:
        result = result + part
    return result


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """A device whose capacity is exceeded.

    Attributes:
        device: `gpu:N`, `cpu` or `disk`.
        phase: `prefill` or `decode`.
        num_bytes: bytes missing.
    """

    device: str
    phase: str
    num_bytes: int


def shortage(memory_by_device: dict[str, dict[str, MemoryBreakdown]]) -> Shortage | None:
    """The largest shortage of any device and phase, or None when everything fits."""
    lacks = [
        Shortage(device=device, phase=phase, num_bytes=-part.free)
        for device, phases in memory_by_device.items()
        for phase, part in phases.items()
        if part.free < 0
    ]
    return max(lacks, key=lambda lack: lack.num_bytes, default=None)
