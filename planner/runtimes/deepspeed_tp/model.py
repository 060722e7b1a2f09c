"""DeepSpeed's tensor parallelism: priced as every cut model is, run where DeepSpeed cuts it right."""

from planner.cost.runtime_model import ExecutionConfig
from planner.graph.schema import ModuleGraph
from planner.runtimes.deepspeed_tp.families import why_not
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import Workload
from planner.tensor_parallel.rules import DEEPSPEED_TP
from planner.tensor_parallel.runtime_model import TensorParallelRuntime


class DeepSpeedTensorParallelRuntime(TensorParallelRuntime):
    """See `planner.cost.runtime_model.RuntimeModel`."""

    name = DEEPSPEED_TP.name
    rules = DEEPSPEED_TP

    def why_not(
        self, graph: ModuleGraph, profile: HardwareProfile, workload: Workload, execution: ExecutionConfig
    ) -> str | None:
        """See `planner.cost.runtime_model.RuntimeModel.why_not`."""
        return why_not(graph, execution.num_ranks) or super().why_not(graph, profile, workload, execution)


RUNTIME_MODEL = DeepSpeedTensorParallelRuntime()
