"""The runtime model of DeepSpeed's tensor parallelism: which models DeepSpeed cuts correctly."""

from planner.cost.runtime_model import Scenario
from planner.runtimes.deepspeed_tp.families import why_not
from planner.tensor_parallel.rules import DEEPSPEED_TP
from planner.tensor_parallel.runtime_model import TensorParallelRuntime


class DeepSpeedTensorParallelRuntime(TensorParallelRuntime):
    """See `planner.cost.runtime_model.RuntimeModel`."""

    name = DEEPSPEED_TP.name
    rules = DEEPSPEED_TP

    def why_not(self, scenario: Scenario) -> str | None:
        """See `planner.cost.runtime_model.RuntimeModel.why_not`."""
        return why_not(scenario.graph, scenario.execution.num_ranks) or super().why_not(scenario)


RUNTIME_MODEL = DeepSpeedTensorParallelRuntime()
