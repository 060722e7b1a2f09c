"""The shape of a runtime: what it can be told to do, and how long it takes to bring weights to work.

A runtime is one package under `planner/runtimes/` with a `law` (pure; `LAW` is its `Law`), an `emit` (pure:
the files that run a plan) and a `generate` (the script among them, which imports nothing of the planner).
`planner/runtimes/registry.py` names them.
"""

from collections.abc import Mapping
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
        num_ranks: processes, one for each GPU in use.
        num_streams: ranks that generate sequences of their own; 1 when all work on the same ones.
        weight_bits: width to which the runtime quantizes weights as it loads them, or None.
    """

    runtime: str
    label: str
    main: str
    host_copies: str = "pageable"
    kv_cache: str = "device"
    cpu_execution: bool = False
    disk: bool = False
    hooks: bool = True
    num_ranks: int = 1
    num_streams: int = 1
    weight_bits: int | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """What a runtime adds to a plan's folder.

    Attributes:
        files: name → contents; `generate.py` among them.
        needs: the packages that it imports, in words.
        readme: paragraphs of the README about this runtime, Markdown.
    """

    files: Mapping[str, bytes]
    needs: str
    readme: str = ""


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
