"""One model on several machines."""

import pytest

from fixtures.graphs import layered_graph
from planner.errors import InvalidInputError
from planner.graph.model import Model
from planner.hardware.load import load
from planner.schema.request import Request
from planner.search.choose import make_plan
from planner.search.compare_machines import compare_machines

MODEL = Model(
    name="layered",
    auto_class="causal-lm",
    dtype="float16",
    graph=layered_graph(40, hidden=5120, vocabulary=50272),
)


def test_each_machine_has_its_own_best_plan() -> None:
    request = Request(objective="latency", new_tokens=4)
    found = compare_machines(MODEL, [load(name) for name in ("t4", "h100", "cpu-48c-384g")], request)
    assert {m.hardware for m in found} == {"t4", "h100", "cpu-48c-384g"}
    assert all(m.fits for m in found)
    assert [m.total_s for m in found] == sorted(m.total_s for m in found)
    for machine in found:
        plan = make_plan(MODEL, load(machine.hardware), request)
        assert machine.total_s == plan.prediction.total_s
        assert (machine.runtime, machine.label) == (plan.runtime, plan.label)


def test_the_cheapest_first_and_no_price_is_a_reason() -> None:
    # Long prompts leave room for few sequences: few batches are tried.
    request = Request(objective="cost", prompt_tokens=2048, new_tokens=4)
    found = compare_machines(MODEL, [load(name) for name in ("h100", "g4dn.xlarge", "g5.xlarge")], request)
    assert [m.fits for m in found] == [True, True, False]
    assert found[-1].hardware == "h100"
    assert "no price" in found[-1].reason
    cheap, dear = (m.usd_per_million_tokens for m in found[:-1])
    assert cheap is not None
    assert dear is not None
    assert 0 < cheap < dear
    assert all("2026" in m.price_note for m in found[:-1])


def test_what_does_not_fit_comes_last_with_its_deficit() -> None:
    machines = [load("g4dn.xlarge"), load("h100")]
    found = compare_machines(MODEL, machines, Request(batch_size=128, prompt_tokens=256))
    assert [(m.hardware, m.fits) for m in found] == [("h100", True), ("g4dn.xlarge", False)]
    assert "lacks" in found[-1].reason


def test_where_nothing_fits_every_machine_says_what_it_lacks() -> None:
    machines = [load("g4dn.xlarge"), load("h100")]
    found = compare_machines(MODEL, machines, Request(batch_size=512, prompt_tokens=2048))
    assert {m.hardware for m in found} == {"g4dn.xlarge", "h100"}
    assert not any(m.fits for m in found)
    assert all("lacks" in m.reason for m in found)


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_a_price_is_shown_whatever_the_objective(objective: str) -> None:
    request = Request(objective=objective, prompt_tokens=2048, new_tokens=2)
    (found,) = compare_machines(MODEL, [load("g5.xlarge")], request)
    # dollars an hour over tokens an hour
    assert found.usd_per_million_tokens == pytest.approx(1.006 / 3600 / found.tokens_per_s * 1e6)


def test_what_makes_no_sense_anywhere_is_an_error_and_not_a_table() -> None:
    machines = [load("t4"), load("g5.xlarge")]
    with pytest.raises(InvalidInputError, match="at least 1, not -3"):
        compare_machines(MODEL, machines, Request(prompt_tokens=-3))
    with pytest.raises(InvalidInputError, match="no machine to compare"):
        compare_machines(MODEL, [], Request())
    with pytest.raises(InvalidInputError, match="'t4' has no price"):
        compare_machines(MODEL, [load("t4"), load("t4")], Request(objective="cost"))
