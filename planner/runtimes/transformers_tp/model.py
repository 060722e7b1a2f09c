"""transformers' own tensor parallelism: priced as every cut model is, run where there is a plan."""

from planner.cost.runtime_model import ExecutionConfig
from planner.graph.schema import ModuleGraph
from planner.runtimes.transformers_tp.families import PLANNED
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import Workload
from planner.tensor_parallel.rules import TRANSFORMERS_TP
from planner.tensor_parallel.runtime_model import TensorParallelRuntime


class TransformersTensorParallelRuntime(TensorParallelRuntime):
    """See `planner.cost.runtime_model.RuntimeModel`."""

    name = TRANSFORMERS_TP.name
    rules = TRANSFORMERS_TP

    def why_not(
        self, graph: ModuleGraph, profile: HardwareProfile, workload: Workload, execution: ExecutionConfig
    ) -> str | None:
        """See `planner.cost.runtime_model.RuntimeModel.why_not`."""
        if graph.model_type not in PLANNED:
            return f"transformers has no tensor-parallel plan (base_model_tp_plan) for {graph.model_type}"
        return super().why_not(graph, profile, workload, execution)


RUNTIME_MODEL = TransformersTensorParallelRuntime()
