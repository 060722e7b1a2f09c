"""The CPU alone: everything lives and runs there, and nothing is moved."""

from planner.cost.runtime_model import Movement, RuntimeModel, Scenario
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile


class CpuRuntime(RuntimeModel):
    """See `planner.cost.runtime_model.RuntimeModel`."""

    name = "cpu"

    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        """One way, on any machine."""
        return (ExecutionConfig(runtime=self.name, label="cpu only", main="cpu"),)

    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """Never asked: no weight leaves the CPU."""
        raise ValueError(f"the cpu runtime moves nothing, so nothing can live on {stored_on}")


RUNTIME_MODEL = CpuRuntime()
