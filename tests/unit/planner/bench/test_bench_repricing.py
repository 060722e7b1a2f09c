"""A written plan priced again says what it said when it was made; memory and time grow with the batch."""

import itertools
from functools import cache

import pytest

from planner.bench.repricing import largest_feasible, predicted, repriced
from planner.cost.predict import predict
from planner.errors import InfeasibleError, UnknownNameError
from planner.graph.model import Model
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.models.resolve import resolve
from planner.schema.plan import Plan, decode, encode
from planner.schema.request import Request
from planner.search.choose import make_plan
from planner.tracing.store import graph_for

WAYS = [
    ("gpt-j-6b", "t4", "accelerate", {}),
    # A long prompt leaves room for few sequences: few batches are tried.
    ("gpt-j-6b", "t4", "accelerate", {"objective": "throughput", "prompt_tokens": 1024}),
    ("opt-13b", "v100-16g", "accelerate", {"batch_size": 16}),
    ("opt-13b", "a10g", "zero-inference", {"batch_size": 8}),
    ("opt-13b", "4xt4", "zero-inference", {"batch_size": 10}),
    ("opt-13b", "4xt4", "accelerate", {}),
    ("gpt2", "cpu-16c-64g", "cpu", {"batch_size": 3}),
    ("opt-30b", "cpu-16c-64g", "accelerate", {}),
]


def planned(name: str, machine: str, runtime: str, options: dict[str, object]) -> tuple[Plan, ModuleGraph]:
    return _planned(name, machine, runtime, **options)


@cache
def _planned(name: str, machine: str, runtime: str, **options: object) -> tuple[Plan, ModuleGraph]:
    """Each plan is made once for all tests."""
    spec = resolve(name)
    graph = graph_for(spec)
    model = Model.of(spec, graph)
    request = Request(runtimes=(runtime,), **options)  # type: ignore[arg-type]
    profile = load(machine)
    if runtime == "accelerate" and profile.num_gpus == 0:
        profile = apply(profile, nvme=(10**12, 3e9))
    return make_plan(model, profile, request), graph


@pytest.mark.parametrize("name, machine, runtime, options", WAYS)
def test_a_plan_is_priced_as_when_it_was_made(
    name: str, machine: str, runtime: str, options: dict[str, object]
) -> None:
    plan, graph = planned(name, machine, runtime, options)
    written = decode(encode(plan))
    problem, assignment = repriced(written, graph, written.workload)
    assert predict(problem, assignment) == plan.prediction
    said = predicted(problem, assignment)
    assert said.fits
    assert said.decode_s == plan.prediction.time["decode"].total
    gpus = [device for device in plan.prediction.memory if device.startswith("gpu:")]
    assert len(said.gpu_bytes) == len(gpus)


@pytest.mark.parametrize("name, machine, runtime, options", WAYS[:4])
def test_the_largest_feasible_batch_is_a_border(
    name: str, machine: str, runtime: str, options: dict[str, object]
) -> None:
    plan, graph = planned(name, machine, runtime, options)
    largest = largest_feasible(plan, graph, plan.workload)
    assert largest >= plan.workload.batch_size
    for batch, fits in ((largest, True), (largest + 1, False)):
        assert predicted(*repriced(plan, graph, plan.workload.with_batch(batch))).fits is fits


def test_time_and_memory_grow_with_the_batch() -> None:
    plan, graph = planned("gpt-j-6b", "t4", "accelerate", {})
    rows = [predicted(*repriced(plan, graph, plan.workload.with_batch(batch))) for batch in (1, 2, 8, 64)]
    for smaller, larger in itertools.pairwise(rows):
        assert larger.prefill_s >= smaller.prefill_s
        assert larger.decode_s >= smaller.decode_s
        assert larger.gpu_bytes[0] > smaller.gpu_bytes[0]


def test_a_cap_decides_what_fits_and_nothing_else() -> None:
    plan, graph = planned("gpt-j-6b", "v100-32g", "accelerate", {})
    free = predicted(*repriced(plan, graph, plan.workload))
    capped = predicted(*repriced(plan, graph, plan.workload, memory_cap_bytes=8 * 2**30))
    assert (free.fits, capped.fits) == (True, False)
    assert capped.gpu_bytes == free.gpu_bytes
    assert capped.time == free.time
    assert largest_feasible(plan, graph, plan.workload, memory_cap_bytes=8 * 2**30) == 0


def test_a_runtime_that_is_not_known_is_refused() -> None:
    plan, graph = planned("gpt-j-6b", "t4", "accelerate", {})
    changed = plan.with_execution(runtime="elsewhere")
    with pytest.raises(UnknownNameError, match="elsewhere"):
        repriced(changed, graph, plan.workload)


def test_the_plan_states_the_configuration_that_it_was_priced_in() -> None:
    plan, graph = planned("gpt-j-6b", "t4", "accelerate", {})
    problem, assignment = repriced(plan, graph, plan.workload)
    assert problem.scenario.execution == plan.execution
    assert predict(problem, assignment) == plan.prediction


def test_the_cases_here_are_not_infeasible_by_accident() -> None:
    with pytest.raises(InfeasibleError):
        planned("opt-30b", "cpu-16c-64g", "cpu", {"dtype": "float32"})
