"""The runtime model of transformers' tensor parallelism: which model types have a plan for it."""

from planner.cost.runtime_model import Scenario
from planner.runtimes.transformers_tp.families import PLANNED
from planner.tensor_parallel.rules import TRANSFORMERS_TP
from planner.tensor_parallel.runtime_model import TensorParallelRuntime


class TransformersTensorParallelRuntime(TensorParallelRuntime):
    """See `planner.cost.runtime_model.RuntimeModel`."""

    name = TRANSFORMERS_TP.name
    rules = TRANSFORMERS_TP

    def why_not(self, scenario: Scenario) -> str | None:
        """See `planner.cost.runtime_model.RuntimeModel.why_not`."""
        model_type = scenario.graph.model_type
        if model_type not in PLANNED:
            return f"transformers has no tensor-parallel plan (base_model_tp_plan) for {model_type}"
        return super().why_not(scenario)


RUNTIME_MODEL = TransformersTensorParallelRuntime()
