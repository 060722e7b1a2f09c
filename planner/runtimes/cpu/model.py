"""The runtime model of the CPU alone: everything is stored and runs there, and nothing is moved."""

from planner.cost.runtime_model import Movement, RuntimeModel, Scenario
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile


class CpuRuntime(RuntimeModel):
    """See `planner.cost.runtime_model.RuntimeModel`."""

    name = "cpu"

    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        """One configuration, on any machine."""
        return (ExecutionConfig(runtime=self.name, label="cpu only", main="cpu"),)

    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """Raises: nothing is stored anywhere else than where it runs.

        Args:
            scenario: not used.
            num_bytes: not used.
            num_tensors: not used.
            stored_on: named in the error.
            runs_on: not used.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"the cpu runtime moves no weights, so none can be stored on {stored_on}")


RUNTIME_MODEL = CpuRuntime()
