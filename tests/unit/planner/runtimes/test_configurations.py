"""What every configuration of every runtime says of the places that it streams from."""

import pytest

from planner.hardware.load import load
from planner.runtimes.registry import RUNTIME_MODELS
from planner.schema.execution import ExecutionConfig

MACHINES = ("t4", "p3.2xlarge", "8xa100-80g", "cpu-16c-64g")
CASES = [
    pytest.param(name, machine, execution, id=f"{name}-{machine}-{execution.label}")
    for name, runtime_model in RUNTIME_MODELS.items()
    for machine in MACHINES
    for execution in runtime_model.configurations(load(machine))
]
#: Where a runtime needs several GPUs, or any, and the machine has fewer.
CANNOT_RUN = {
    ("zero-inference", "cpu-16c-64g"),
    ("kernel-injection", "cpu-16c-64g"),
    *((name, machine) for name in ("deepspeed-tp", "transformers-tp") for machine in MACHINES[:2]),
    *((name, "cpu-16c-64g") for name in ("deepspeed-tp", "transformers-tp")),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", RUNTIME_MODELS)
def test_a_runtime_has_configurations_where_it_can_run(name: str, machine: str) -> None:
    configurations = RUNTIME_MODELS[name].configurations(load(machine))
    assert bool(configurations) == ((name, machine) not in CANNOT_RUN)
    assert len({execution.label for execution in configurations}) == len(configurations)


@pytest.mark.parametrize("name, machine, execution", CASES)
def test_places_that_a_configuration_streams_from(
    name: str, machine: str, execution: ExecutionConfig
) -> None:
    assert execution.main not in execution.streams_from
    assert set(execution.streams_from) <= {"cpu", "disk", "peers"}
    if load(machine).disk is None:
        assert "disk" not in execution.streams_from
    if RUNTIME_MODELS[name].stores_all:
        assert len(execution.streams_from) == 1
    else:
        # Beside each other the nearer place comes first.
        assert execution.streams_from in ((), ("cpu",), ("disk",), ("cpu", "disk"))
