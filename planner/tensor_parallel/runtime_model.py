"""The cost law that every tensor-parallel runtime shares: one rank's share, and the sums between the ranks.

A runtime's own law names itself and its rules, and says which models it does not run.
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
    """See `planner.cost.runtime_model.RuntimeModel`.

    Attributes:
        rules: how the runtime cuts.
        least_ranks: the fewest ranks worth pricing; 1 where the runtime changes more than the cut.
    """

    rules: CutRules
    least_ranks: int = 2

    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        """Every power of two up to the GPUs, and all of them; everything is resident."""
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
        """See `planner.cost.runtime_model.RuntimeModel.absent`."""
        need = f"at least {self.least_ranks} GPUs" if self.least_ranks > 1 else "a GPU"
        return f"it needs {need}, and {profile.name} has {profile.num_gpus}"

    def why_not(self, scenario: Scenario) -> str | None:
        """See `planner.cost.runtime_model.RuntimeModel.why_not`."""
        num_ranks, profile = scenario.execution.num_ranks, scenario.profile
        if num_ranks > 1 and profile.fabric is None:
            return f"{profile.name} says nothing of the fabric between its GPUs"
        return refusal(scenario.graph, num_ranks)

    def rank_graph(self, graph: ModuleGraph, execution: ExecutionConfig) -> ModuleGraph:
        """See `planner.cost.runtime_model.RuntimeModel.rank_graph`."""
        return fused(sharded(graph, execution.num_ranks, self.rules), self.rules)

    def communication_s(self, scenario: Scenario) -> Mapping[str, float]:
        """See `planner.cost.runtime_model.RuntimeModel.communication_s`."""
        num_ranks, fabric = scenario.execution.num_ranks, scenario.profile.fabric
        if num_ranks == 1 or fabric is None:
            return super().communication_s(scenario)
        return communication_s(scenario.graph, scenario.workload, self.rules, num_ranks, fabric)

    def buffers(self, scenario: Scenario) -> Buffers:
        """See `planner.cost.runtime_model.RuntimeModel.buffers`: what NCCL keeps."""
        fabric = scenario.profile.fabric
        if fabric is None:
            return Buffers()
        return Buffers(workspace=communicator_bytes(scenario.execution.num_ranks, fabric))

    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """Never asked: every weight is resident."""
        raise ValueError(f"{self.name} keeps all weights on its GPUs, so nothing can live on {stored_on}")

    def load_s(self, scenario: Scenario, *, read_bytes: int, device_bytes: int) -> float:
        """From pre-shards: the ranks share the disk, and each fills its own GPU."""
        total = scenario.execution.num_ranks * read_bytes
        return read_and_copy_s(scenario.profile, read_bytes=total, device_bytes=device_bytes)

    def whole_load_s(self, scenario: Scenario, *, model_bytes: int, device_bytes: int) -> float:
        """From a checkpoint that is not cut: every rank reads all of it.

        Args:
            scenario: one rank's.
            model_bytes: of the whole checkpoint.
            device_bytes: weights that live on one rank's GPU.
        """
        total = scenario.execution.num_ranks * model_bytes
        return read_and_copy_s(scenario.profile, read_bytes=total, device_bytes=device_bytes)
