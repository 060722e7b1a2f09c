"""A choice of places for everything that a problem places."""

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment, kind_of, leaves
from planner.cost.problem import Problem
from planner.hardware.load import load
from planner.runtimes.accelerate.model import RUNTIME_MODEL
from planner.schema.workload import Workload


def problem() -> Problem:
    machine = load("t4")
    workload = Workload(batch_size=1, prompt_tokens=8, new_tokens=4, dtype="float16")
    execution = RUNTIME_MODEL.configurations(machine)[0]
    return problem_of(layered_graph(2), machine, workload, execution, RUNTIME_MODEL)


def test_uniform_has_one_place_for_all() -> None:
    priced = problem()
    resident = Assignment.uniform(priced, "gpu:0")
    assert resident.places == {"gpu:0"}
    streamed = Assignment.uniform(priced, "gpu:0", "cpu")
    assert streamed.runs_on == resident.runs_on == ("gpu:0",) * len(priced.units)
    assert streamed.places == {"gpu:0", "cpu"}


def test_leaves_come_with_their_units_device_in_order() -> None:
    priced = problem()
    streamed = Assignment.uniform(priced, "gpu:0", "cpu")
    walked = list(leaves(priced, streamed))
    assert [leaf for _, leaf, _ in walked] == [leaf for unit in priced.units for leaf in unit.leaves]
    assert {(runs_on, stored_on) for runs_on, _, stored_on in walked} == {("gpu:0", "cpu")}


def test_kinds_of_devices() -> None:
    assert [kind_of(device) for device in ("gpu:0", "gpu:13", "cpu", "disk", "peers")] == [
        "gpu",
        "gpu",
        "cpu",
        "disk",
        "peers",
    ]
