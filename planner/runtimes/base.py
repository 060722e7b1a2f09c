"""The shape of a runtime: what it can be told to do, and how long it takes to bring weights to work.

A runtime is one package under `planner/runtimes/` with a `law` (pure: `RUNTIME`, below) and an `emit`
(writes the folder that runs it). `planner/runtimes/registry.py` names them.
"""

from dataclasses import dataclass
from typing import Protocol

from planner.hardware.schema import HardwareProfile
from planner.sources import Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One way to run a runtime; a search prices each.

    Attributes:
        runtime: its name.
        label: in words, for a table.
        main: `gpu:0` or `cpu`: where streamed modules and the root run.
        host_copies: `pinned` or `pageable`.
        kv_cache: `device` (where the block runs) or `offloaded` (host memory, moved every step).
        cpu_execution: whether chosen units may execute on the CPU beside a GPU.
        disk: whether weights may stay on disk.
        hooks: whether every module is hooked as soon as more than one place is used.
    """

    runtime: str
    label: str
    main: str
    host_copies: str = "pageable"
    kv_cache: str = "device"
    cpu_execution: bool = False
    disk: bool = False
    hooks: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """Seconds to bring a leaf's weights where they run, once.

    Attributes:
        copy_s: the bytes.
        host_s: the host's work around them.
        quantities: every number this came from.
    """

    copy_s: float
    host_s: float
    quantities: tuple[Quantity, ...]


class Law(Protocol):
    """What the cost model asks of a runtime."""

    name: str

    def settings(self, profile: HardwareProfile) -> tuple[Settings, ...]:
        """Every way worth pricing on this machine, the simplest first; empty when it cannot run there."""

    def movement(
        self,
        *,
        num_bytes: int,
        num_tensors: int,
        lives: str,
        executes: str,
        settings: Settings,
        profile: HardwareProfile,
    ) -> Movement:
        """Time to bring `num_tensors` tensors of `num_bytes` from `lives` (`cpu` or `disk`) to `executes`."""
