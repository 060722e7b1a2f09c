"""What is priced, and how a runtime runs it: a `Scenario`, and the `RuntimeModel` of the runtime.

A runtime is one package under `planner/runtimes/` with a `model` (pure; `RUNTIME_MODEL` is its
`RuntimeModel`), an `emit` (pure: the files that run a plan) and a `generate` (the script among them, which
imports nothing of the planner). `planner/runtimes/registry.py` names them.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from planner.cost.placement_units import Chain, chain_of
from planner.cost.time_terms import read_and_copy_s
from planner.graph.groups import placement_units
from planner.graph.schema import ModuleGraph, Node
from planner.schema.breakdown import PHASES
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity
from planner.schema.workload import Workload

#: How many graphs' chains are kept: those of a model and of its ranks, of two models.
_KEPT_CHAINS: Final = 8
#: By the graph's identity, with the graph, so that no other graph takes it: hashing one is a long walk.
_chains: OrderedDict[int, tuple[ModuleGraph, Chain]] = OrderedDict()


def _chain(graph: ModuleGraph) -> Chain:
    """The placement units of a graph; a calibration prices one graph thousands of times."""
    if id(graph) not in _chains:
        _chains[id(graph)] = graph, chain_of(graph, placement_units(graph))
    _chains.move_to_end(id(graph))
    while len(_chains) > _KEPT_CHAINS:
        _chains.popitem(last=False)
    return _chains[id(graph)][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that a price depends on: a model, a machine, a workload, and how it is run.

    `whole` builds the scenario of all ranks together; `of_one_rank` is what is priced. A stream is a rank
    that generates sequences of its own.

    Attributes:
        graph: the model, or one rank's part of it.
        chain: the graph's placement units.
        profile: the whole machine.
        workload: of all streams together, or of one rank.
        num_sequences: sequences of all streams together.
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
    ) -> "Scenario":
        """The scenario of all ranks together.

        Args:
            graph: the whole model.
            profile: the whole machine.
            workload: of all streams together.
            execution: the runtime's configuration.
            runtime_model: the runtime.
        """
        return cls(
            graph=graph,
            chain=_chain(graph),
            profile=profile,
            workload=workload,
            num_sequences=workload.batch_size,
            execution=execution,
            runtime_model=runtime_model,
        )

    def of_one_rank(self) -> "Scenario":
        """The scenario of one rank: its part of the model and its sequences."""
        graph = self.runtime_model.rank_graph(self.graph, self.execution)
        return replace(
            self,
            graph=graph,
            chain=_chain(graph),
            workload=self.workload.with_batch(-(-self.num_sequences // self.execution.num_streams)),
        )

    def with_batch(self, batch_size: int, *, num_sequences: int | None = None) -> "Scenario":
        """One rank's scenario at another batch.

        Args:
            batch_size: sequences of one rank.
            num_sequences: sequences of all streams together; `batch_size` times the streams for None.
        """
        return replace(
            self,
            workload=self.workload.with_batch(batch_size),
            num_sequences=num_sequences or batch_size * self.execution.num_streams,
        )

    @property
    def num_stages(self) -> int:
        """GPUs over which one rank can distribute its units, as pipeline stages."""
        return self.profile.num_gpus if self.runtime_model.pipeline else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """Time to bring a leaf's weights to the device where they are used, once.

    Attributes:
        copy_s: seconds to transfer the bytes.
        host_s: seconds of the host's work around the transfer.
        quantities: every number that these were computed from.
    """

    copy_s: float
    host_s: float
    quantities: tuple[Quantity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """Bytes that a runtime takes besides the weights, whatever the amount that it streams.

    Attributes:
        device: on each GPU in use, when anything is streamed or kept in a store.
        host: in host memory, for all ranks together, in the same case.
        disk: on disk, in the same case.
        workspace: on each GPU in use, always.
        unpacked: bytes by which the checkpoint is larger than the weights as the runtime keeps them, if it
            quantizes them; they are read once, while loading.
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
        files: name → contents, `generate.py` among them.
        needs: the packages that the script imports, in words, for the README.
        readme: paragraphs of the README about this runtime, in Markdown.
    """

    files: Mapping[str, bytes]
    needs: str
    readme: str = ""


class RuntimeModel(ABC):
    """What the cost model asks of a runtime. With several ranks every answer is about one of them.

    Attributes:
        name: name of the runtime.
        own_environment: packages that it cannot share an environment with other runtimes for, in words, or
            empty. Such a runtime is priced and shown, and chosen only when it is asked for by name or nothing
            else fits.
        pipeline: whether several GPUs of one process hold the model in stages.
        stores_all: whether one place keeps every weight, resident ones included, and the others are streamed
            from it. The bytes of that place are counted in `buffers`, and it is the only entry of every
            configuration's `streams_from`.
        needs_resident: whether something must be stored on the main GPU, even when all could be streamed.
        hooks: when modules have hooks: `split` (as soon as more than one place is used), `always` or `never`.
        hooks_on: which modules have them: `owners` of tensors, or all `modules`.
        hooks_wait: whether the hooks wait for the device, so that kernels do not hide their host time.
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
        """Every configuration worth pricing on a machine, the simplest first; empty when none runs there."""

    @abstractmethod
    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """Time to bring tensors from where they are stored to the device where they are used.

        Args:
            scenario: the scenario of one rank.
            num_bytes: bytes of all the tensors together.
            num_tensors: number of tensors; each is one copy.
            stored_on: `gpu:N`, `cpu`, `disk` or `peers`; not `runs_on`.
            runs_on: `gpu:N` or `cpu`.
        """

    def absent(self, profile: HardwareProfile) -> str:
        """Why `configurations` is empty for a machine, as a clause."""
        return f"{profile.name} has {profile.num_gpus} GPUs"

    def why_not(self, scenario: Scenario) -> str | None:
        """Why the runtime cannot run a scenario of all ranks, as a clause; None when it can."""
        return None

    def rank_graph(self, graph: ModuleGraph, execution: ExecutionConfig) -> ModuleGraph:
        """One rank's part of the model `graph`: all of it, unless the runtime cuts or quantizes weights."""
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
        """Memory of the runtime besides the weights."""
        return Buffers()

    def streamed_peaks(
        self, scenario: Scenario, live: Callable[[Node, str], int | None]
    ) -> Mapping[str, Mapping[str, int]] | None:
        """Peak bytes of activations and staged weights that streaming a module leads to.

        Args:
            scenario: the scenario of one rank.
            live: a function from a node and a phase to the activation bytes while the node's own operations
                run, or None where it has none.

        Returns:
            Module → phase → bytes, without those that `buffers` counts on the GPU; a module that is absent
            leads to none. None for a runtime that stages a module's own weights only, while the module runs.
        """
        return None

    def communication_s(self, scenario: Scenario) -> Mapping[str, float]:
        """Phase → seconds in which the ranks exchange results during one forward of `rank_graph`."""
        return dict.fromkeys(PHASES, 0.0)

    def load_s(self, scenario: Scenario, *, read_bytes: int, device_bytes: int) -> float:
        """Seconds to read the checkpoint and to copy to each GPU what is stored there.

        Args:
            scenario: the scenario of one rank.
            read_bytes: bytes of one rank's weights that do not stay on disk.
            device_bytes: bytes of the weights that are stored on the rank's GPU.
        """
        return read_and_copy_s(scenario.profile, read_bytes=read_bytes, device_bytes=device_bytes)
