"""DeepSpeed's tensor parallelism: priced as every cut model is, run where DeepSpeed cuts it right."""

from planner.cost.runtime_model import Settings
from planner.graph.schema import ModuleGraph
from planner.runtimes.deepspeed_tp.families import why_not
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import Workload
from planner.tensor_parallel.rules import DEEPSPEED_TP
from planner.tensor_parallel.runtime_model import TensorParallelLaw


class DeepSpeedTensorParallelLaw(TensorParallelLaw):
    """See `planner.cost.runtime_model.Law`."""

    name = DEEPSPEED_TP.name
    rules = DEEPSPEED_TP

    def why_not(
        self, graph: ModuleGraph, profile: HardwareProfile, workload: Workload, settings: Settings
    ) -> str | None:
        """See `planner.cost.runtime_model.Law.why_not`."""
        return why_not(graph, settings.num_ranks) or super().why_not(graph, profile, workload, settings)


LAW = DeepSpeedTensorParallelLaw()
