"""What is priced, and how a runtime runs it: a `Scenario`, and the `RuntimeModel` that answers for it.

A runtime is one package under `planner/runtimes/` with a `model` (pure; `RUNTIME_MODEL` is its
`RuntimeModel`), an `emit` (pure: the files that run a plan) and a `generate` (the script among them, which
imports nothing of the planner). `planner/runtimes/registry.py` names them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from planner.cost.placement_units import Chain, chain_of
from planner.cost.time_terms import read_and_copy_s
from planner.graph.network import placement_units
from planner.graph.schema import ModuleGraph, Node
from planner.schema.breakdown import PHASES
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity
from planner.schema.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that a price depends on: a model, a machine, a workload, and how it is run.

    `whole` makes it for all ranks together; `of_one_rank` is what is priced.

    Attributes:
        graph: the model, or one rank's part of it.
        chain: the graph's placement units.
        profile: the whole machine.
        workload: of all streams together, or of one rank.
        num_sequences: of all streams together.
        execution: the runtime's configuration.
        runtime_model: the runtime.
    """

    graph: ModuleGraph
    chain: Chain
    profile: HardwareProfile
    workload: Workload
    num_sequences: int
    execution: ExecutionConfig
    runtime_model: "RuntimeModel"

    @classmethod
    def whole(
        cls,
        graph: ModuleGraph,
        profile: HardwareProfile,
        workload: Workload,
        execution: ExecutionConfig,
        runtime_model: "RuntimeModel",
        *,
        chain: Chain | None = None,
    ) -> "Scenario":
        """All ranks together.

        Args:
            graph: the whole model.
            profile: the whole machine.
            workload: of all streams together.
            execution: the runtime's configuration.
            runtime_model: the runtime.
            chain: the graph's placement units, where they are known already; computed for None.
        """
        return cls(
            graph=graph,
            chain=chain if chain is not None else chain_of(graph, placement_units(graph)),
            profile=profile,
            workload=workload,
            num_sequences=workload.batch_size,
            execution=execution,
            runtime_model=runtime_model,
        )

    def of_one_rank(self) -> "Scenario":
        """What one rank holds, computes and generates of it."""
        graph = self.runtime_model.rank_graph(self.graph, self.execution)
        return replace(
            self,
            graph=graph,
            chain=self.chain if graph is self.graph else chain_of(graph, placement_units(graph)),
            workload=self.workload.with_batch(-(-self.num_sequences // self.execution.num_streams)),
        )

    def with_batch(self, batch_size: int, *, num_sequences: int | None = None) -> "Scenario":
        """One rank's scenario at another batch.

        Args:
            batch_size: sequences of one rank.
            num_sequences: of all streams together; one rank's times the streams for None.
        """
        return replace(
            self,
            workload=self.workload.with_batch(batch_size),
            num_sequences=num_sequences or batch_size * self.execution.num_streams,
        )

    @property
    def num_stages(self) -> int:
        """GPUs over which one rank can spread its units."""
        return self.profile.num_gpus if self.runtime_model.pipeline else 1


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
            it; its bytes are among `buffers`, and every configuration's `streams_from` is that place alone.
        needs_resident: whether something must be stored on the main GPU, even when all could be streamed.
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
        """Every configuration worth pricing on a machine, the simplest first; empty when it cannot run."""

    @abstractmethod
    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """Time to bring tensors from where they are stored to where they run.

        Args:
            scenario: one rank's.
            num_bytes: of all the tensors together.
            num_tensors: how many copies that is.
            stored_on: a device, `disk` or `peers`.
            runs_on: a device.
        """

    def absent(self, profile: HardwareProfile) -> str:
        """When `configurations` is empty: the reason, as a clause."""
        return f"{profile.name} has {profile.num_gpus} GPUs"

    def why_not(self, scenario: Scenario) -> str | None:
        """Why the model cannot run so, as a clause; None when it can. Asked of the `whole` scenario."""
        return None

    def rank_graph(self, graph: ModuleGraph, execution: ExecutionConfig) -> ModuleGraph:
        """What one rank holds and computes of the model: all of it, unless the runtime cuts it."""
        return graph

    def notes(self, graph: ModuleGraph, execution: ExecutionConfig) -> tuple[str, ...]:
        """What a user should know of a plan with this configuration: sentences without the final period.

        `graph` is the whole model, as in `rank_graph`.
        """
        return ()

    def hook(self, profile: HardwareProfile) -> Quantity:
        """Host time of the runtime's hook around one module's forward."""
        return profile.host.hook_overhead_s

    def buffers(self, scenario: Scenario) -> Buffers:
        """What the runtime takes besides the weights."""
        return Buffers()

    def streamed_peaks(
        self, scenario: Scenario, live: Callable[[Node, str], int | None]
    ) -> Mapping[str, Mapping[str, int]] | None:
        """Module → phase → bytes of activations and staged weights at the worst, when it is streamed.

        What `buffers` has on the GPU is not counted; a module that is not named needs no more.

        Args:
            scenario: one rank's.
            live: a node and a phase → activations while its own code runs, or None where it does not.

        Returns:
            None: only a module's own weights are staged, while it runs.
        """
        return None

    def communication_s(self, scenario: Scenario) -> Mapping[str, float]:
        """Phase → seconds that the ranks spend on each other's results in one forward of `rank_graph`."""
        return dict.fromkeys(PHASES, 0.0)

    def load_s(self, scenario: Scenario, *, read_bytes: int, device_bytes: int) -> float:
        """Seconds to read what must be read and to copy to each GPU what is stored there.

        Args:
            scenario: one rank's.
            read_bytes: weights that do not stay on disk, of one rank.
            device_bytes: weights that are stored on the rank's GPU.
        """
        return read_and_copy_s(scenario.profile, read_bytes=read_bytes, device_bytes=device_bytes)
