"""The shape of a runtime: what it can be told to do, and how long it takes to bring weights to work.

A runtime is one package under `planner/runtimes/` with a `model` (pure; `RUNTIME_MODEL` is its
`RuntimeModel`), an `emit` (pure: the files that run a plan) and a `generate` (the script among them, which
imports nothing of the planner).
`planner/runtimes/registry.py` names them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from planner.cost.time_terms import read_and_copy_s
from planner.graph.schema import ModuleGraph, Node
from planner.schema.breakdown import PHASES
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity
from planner.schema.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionConfig:
    """One way to run a runtime; a search prices each.

    Attributes:
        runtime: its name.
        label: in words, for a table.
        main: `gpu:0` or `cpu`: where streamed modules and the root run.
        host_copies: `pinned` or `pageable`.
        kv_cache: `device` (where the block runs) or `offloaded` (host memory, moved every step).
        cpu_execution: whether chosen units may execute on the CPU beside a GPU.
        streams_from: places besides the main device that weights may be in and are streamed to it from, the
            nearest first: `cpu`, `disk` or `peers` (cut over the ranks' GPUs).
        overlaps: whether weights are copied while the device computes, so that only the longer counts.
        num_ranks: processes, one for each GPU in use.
        num_streams: ranks that generate sequences of their own; 1 when all work on the same ones.
        weight_bits: width to which the runtime quantizes weights as it loads them, or None.
        keeps_host_pages: whether a script that runs on the processor alone has the C library keep pages.
    """

    runtime: str
    label: str
    main: str
    host_copies: str = "pageable"
    kv_cache: str = "device"
    cpu_execution: bool = False
    streams_from: tuple[str, ...] = ()
    overlaps: bool = False
    num_ranks: int = 1
    num_streams: int = 1
    weight_bits: int | None = None
    keeps_host_pages: bool = True


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
class Buffers:
    """Bytes that a runtime takes besides the weights themselves, however much it streams.

    Attributes:
        device: on each GPU in use, when anything is streamed or kept in a store.
        host: in host memory then, all ranks together.
        disk: on disk then.
        workspace: on each GPU in use, always.
        unpacked: what the checkpoint has beyond the weights as they are kept, read once while loading.
    """

    device: int = 0
    host: int = 0
    disk: int = 0
    workspace: int = 0
    unpacked: int = 0


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


class RuntimeModel(ABC):
    """What the cost model asks of a runtime. With several ranks every answer is about one of them.

    Attributes:
        name: of the runtime.
        own_environment: what it needs that other runtimes cannot share an environment with, or empty. Such a
            runtime is priced and shown, and chosen only when it is asked for by name or nothing else fits.
        pipeline: whether several GPUs of one process hold the model in stages.
        stores_all: whether one place keeps every weight, resident ones too, and the others are streamed from
            it; its bytes are among the law's buffers, and every way's `streams_from` is that place alone.
        needs_resident: whether something must live on the main GPU, even when all could be streamed to it.
        hooks: when every module is hooked: `split` (as soon as more than one place is used), `always`
            or `never`.
        hooks_on: `owners` of tensors, or all `modules`.
        hooks_wait: whether its hooks wait for the device: kernels do not hide the host's work in them then.
    """

    name: str
    own_environment: str = ""
    pipeline: bool = False
    stores_all: bool = False
    needs_resident: bool = False
    hooks: Literal["split", "always", "never"] = "never"
    hooks_on: Literal["owners", "modules"] = "owners"
    hooks_wait: bool = False

    @abstractmethod
    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        """Every way worth pricing on this machine, the simplest first; empty when it cannot run there."""

    @abstractmethod
    def movement(
        self,
        *,
        num_bytes: int,
        num_tensors: int,
        stored_on: str,
        runs_on: str,
        execution: ExecutionConfig,
        profile: HardwareProfile,
    ) -> Movement:
        """Time to bring `num_tensors` tensors of `num_bytes` from `stored_on` to `runs_on`."""

    def absent(self, profile: HardwareProfile) -> str:
        """When `settings` is empty: the reason, as a clause."""
        return f"{profile.name} has {profile.num_gpus} GPUs"

    def why_not(
        self, graph: ModuleGraph, profile: HardwareProfile, workload: Workload, execution: ExecutionConfig
    ) -> str | None:
        """Why this model cannot run this way, as a clause; None when it can."""
        return None

    def rank_graph(self, graph: ModuleGraph, execution: ExecutionConfig) -> ModuleGraph:
        """What one rank holds and computes of the model: all of it, unless the runtime cuts it."""
        return graph

    def hook(self, profile: HardwareProfile) -> Quantity:
        """Host time of the runtime's hook around one module's forward."""
        return profile.host.hook_overhead_s

    def buffers(
        self, graph: ModuleGraph, profile: HardwareProfile, workload: Workload, execution: ExecutionConfig
    ) -> Buffers:
        """What the runtime takes besides the weights."""
        return Buffers()

    def streamed_peaks(
        self, graph: ModuleGraph, workload: Workload, live: Callable[[Node, str], int | None]
    ) -> Mapping[str, Mapping[str, int]] | None:
        """Module → phase → bytes of activations and staged weights at the worst, when it is streamed.

        What `buffers` has on the GPU is not counted; a module that is not named needs no more.

        Args:
            graph: what the rank computes.
            workload: the rank's.
            live: a node and a phase → activations while its own code runs, or None where it does not.

        Returns:
            None: only a module's own weights are staged, while it runs.
        """
        return None

    def communication_s(
        self, graph: ModuleGraph, profile: HardwareProfile, workload: Workload, execution: ExecutionConfig
    ) -> Mapping[str, float]:
        """Phase → seconds that the ranks spend on each other's results in one forward of `rank_graph`."""
        return dict.fromkeys(PHASES, 0.0)

    def load_s(
        self, *, read_bytes: int, device_bytes: int, execution: ExecutionConfig, profile: HardwareProfile
    ) -> float:
        """Reading what must be read and copying to each GPU what lives there.

        Args:
            read_bytes: weights that do not stay on disk, of one rank.
            device_bytes: weights that live on the rank's GPU.
            execution: the way to run.
            profile: the machine.
        """
        return read_and_copy_s(profile, read_bytes=read_bytes, device_bytes=device_bytes)
