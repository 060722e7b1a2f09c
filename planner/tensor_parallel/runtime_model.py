"""The runtime model that all tensor-parallel runtimes share: one rank's part of a model, and collectives.

Each runtime's own model adds its name, its rules, and which models it does not run.
"""

from collections.abc import Mapping

from planner.cost.runtime_model import Buffers, Movement, RuntimeModel, Scenario
from planner.cost.time_terms import read_and_copy_s
from planner.graph.schema import ModuleGraph
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.tensor_parallel.all_reduce import communicator_bytes
from planner.tensor_parallel.communication import communication_s
from planner.tensor_parallel.fused import fused
from planner.tensor_parallel.rules import CutRules
from planner.tensor_parallel.shard import refusal, sharded


class TensorParallelRuntime(RuntimeModel):
    """Base of the tensor-parallel runtimes. See `planner.cost.runtime_model.RuntimeModel`.

    Attributes:
        rules: how the runtime cuts a model.
        least_ranks: the fewest ranks worth pricing; 1 where the runtime changes more than the cut.
    """

    rules: CutRules
    least_ranks: int = 2

    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        """One per power of two up to the number of GPUs, and one with all GPUs; every weight is resident."""
        counts = {2**power for power in range(11)} | {profile.num_gpus}
        return tuple(
            ExecutionConfig(
                runtime=self.name,
                label=f"{self.name}, {num_ranks} GPU{'s' if num_ranks > 1 else ''}",
                main="gpu:0",
                num_ranks=num_ranks,
            )
            for num_ranks in sorted(counts)
            if self.least_ranks <= num_ranks <= profile.num_gpus
        )

    def absent(self, profile: HardwareProfile) -> str:
        """See `planner.cost.runtime_model.RuntimeModel.absent`: there are too few GPUs."""
        need = f"at least {self.least_ranks} GPUs" if self.least_ranks > 1 else "a GPU"
        return f"it needs {need}, and {profile.name} has {profile.num_gpus}"

    def why_not(self, scenario: Scenario) -> str | None:
        """See `planner.cost.runtime_model.RuntimeModel.why_not`: no fabric, or weights that do not divide."""
        num_ranks, profile = scenario.execution.num_ranks, scenario.profile
        if num_ranks > 1 and profile.fabric is None:
            return f"{profile.name} does not state the fabric between its GPUs"
        return refusal(scenario.graph, num_ranks)

    def rank_graph(self, graph: ModuleGraph, execution: ExecutionConfig) -> ModuleGraph:
        """See `planner.cost.runtime_model.RuntimeModel.rank_graph`: cut, and with fused blocks."""
        return fused(sharded(graph, execution.num_ranks, self.rules), self.rules)

    def communication_s(self, scenario: Scenario) -> Mapping[str, float]:
        """See `planner.cost.runtime_model.RuntimeModel.communication_s`: NCCL's collectives."""
        num_ranks, fabric = scenario.execution.num_ranks, scenario.profile.fabric
        if num_ranks == 1 or fabric is None:
            return super().communication_s(scenario)
        return communication_s(scenario.graph, scenario.workload, self.rules, num_ranks, fabric)

    def buffers(self, scenario: Scenario) -> Buffers:
        """See `planner.cost.runtime_model.RuntimeModel.buffers`: NCCL's buffers are workspace."""
        fabric = scenario.profile.fabric
        if fabric is None:
            return Buffers()
        return Buffers(workspace=communicator_bytes(scenario.execution.num_ranks, fabric))

    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """See `planner.cost.runtime_model.RuntimeModel.movement`.

        Every weight is resident, so no configuration leads here.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name} keeps all weights on its GPUs, so none can be stored on {stored_on}")

    def load_s(self, scenario: Scenario, *, read_bytes: int, device_bytes: int) -> float:
        """See `planner.cost.runtime_model.RuntimeModel.load_s`.

        The ranks read pre-sharded checkpoints: together they share the disk, and each fills its own GPU.
        """
        total = scenario.execution.num_ranks * read_bytes
        return read_and_copy_s(scenario.profile, read_bytes=total, device_bytes=device_bytes)

    def whole_load_s(self, scenario: Scenario, *, model_bytes: int, device_bytes: int) -> float:
        """Seconds to load from a checkpoint that is not cut: every rank reads all of it.

        Args:
            scenario: one rank's.
            model_bytes: size of the whole checkpoint.
            device_bytes: weights that are stored on one rank's GPU.
        """
        total = scenario.execution.num_ranks * model_bytes
        return read_and_copy_s(scenario.profile, read_bytes=total, device_bytes=device_bytes)
