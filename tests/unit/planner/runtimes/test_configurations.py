"""What every way of every runtime says of the places that it streams from."""

import pytest

from planner.hardware.load import load
from planner.runtimes.registry import RUNTIME_MODELS


@pytest.mark.parametrize("machine", ["t4", "p3.2xlarge", "8xa100-80g", "cpu-16c-64g"])
@pytest.mark.parametrize("name", RUNTIME_MODELS)
def test_places_that_a_way_streams_from(name: str, machine: str) -> None:
    runtime_model, profile = RUNTIME_MODELS[name], load(machine)
    for way in runtime_model.configurations(profile):
        assert way.main not in way.streams_from
        assert set(way.streams_from) <= {"cpu", "disk", "peers"}
        assert "disk" not in way.streams_from or profile.disk is not None
        if runtime_model.stores_all:
            assert len(way.streams_from) == 1
        else:
            # Beside each other the nearer place comes first.
            assert way.streams_from in ((), ("cpu",), ("disk",), ("cpu", "disk"))
