"""DeepSpeed's tensor parallelism: priced as every cut model is, run where DeepSpeed cuts it right."""

from planner.graph.schema import ModuleGraph
from planner.hardware.schema import HardwareProfile
from planner.runtimes.base import Settings
from planner.runtimes.deepspeed_tp.families import why_not
from planner.tensor_parallel.law import TensorParallelLaw
from planner.tensor_parallel.rules import DEEPSPEED_TP
from planner.workload import Workload


class DeepSpeedTensorParallelLaw(TensorParallelLaw):
    """See `planner.runtimes.base.Law`."""

    name = DEEPSPEED_TP.name
    rules = DEEPSPEED_TP

    def why_not(
        self, graph: ModuleGraph, profile: HardwareProfile, workload: Workload, settings: Settings
    ) -> str | None:
        """See `planner.runtimes.base.Law.why_not`."""
        return why_not(graph, settings.num_ranks) or super().why_not(graph, profile, workload, settings)


LAW = DeepSpeedTensorParallelLaw()
