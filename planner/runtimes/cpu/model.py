"""The CPU alone: everything lives and runs there, and nothing is moved."""

from planner.cost.runtime_model import Law, Movement, Settings
from planner.schema.hardware import HardwareProfile


class CpuLaw(Law):
    """See `planner.cost.runtime_model.Law`."""

    name = "cpu"

    def settings(self, profile: HardwareProfile) -> tuple[Settings, ...]:
        """One way, on any machine."""
        return (Settings(runtime=self.name, label="cpu only", main="cpu"),)

    def movement(
        self,
        *,
        num_bytes: int,
        num_tensors: int,
        lives: str,
        executes: str,
        settings: Settings,
        profile: HardwareProfile,
    ) -> Movement:
        """Never asked: no weight leaves the CPU."""
        raise ValueError(f"the cpu runtime moves nothing, so nothing can live on {lives}")


LAW = CpuLaw()
