"""Memory and time of a two-block model, worked out by hand in the comments."""

from itertools import pairwise

import msgspec
import pytest

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment
from planner.cost.memory import memory
from planner.cost.problem import Problem
from planner.cost.time import objective_s, time
from planner.errors import InvalidInputError
from planner.hardware.load import load
from planner.runtimes.accelerate.model import RUNTIME_MODEL
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity, Source
from planner.schema.request import Request
from planner.schema.workload import BATCH_LADDER, Workload

HIDDEN, VOCABULARY = 64, 256
# A block has 4·64² (attention) + 2·4·64² (MLP) weights of 2 bytes.
BLOCK_BYTES = 12 * HIDDEN**2 * 2
TABLE_BYTES = VOCABULARY * HIDDEN * 2


def _round_machine() -> HardwareProfile:
    """A T4 host with round rates: 1 GB/s pinned, 0.5 GB/s pageable, 1 ms of host work a tensor."""
    base = load("t4")
    assert base.host_to_device is not None

    def given(value: float) -> Quantity:
        return Quantity(value=value, source=Source.MEASURED)

    link = msgspec.structs.replace(
        base.host_to_device,
        pinned_bytes_per_s=given(1e9),
        pageable_bytes_per_s=given(0.5e9),
        latency_s=given(0.0),
    )
    host = msgspec.structs.replace(
        base.host,
        tensor_move_overhead_s=given(1e-3),
        op_overhead_s=given(1e-5),
        hook_overhead_s=given(2e-5),
    )
    return msgspec.structs.replace(base, host_to_device=link, device_to_host=link, host=host)


def _problem(host_copies: str = "pinned", kv_cache: str = "device", batch: int = 2) -> Problem:
    graph = layered_graph(2, hidden=HIDDEN, vocabulary=VOCABULARY)
    settings = ExecutionConfig(
        runtime="accelerate",
        label="test",
        main="gpu:0",
        host_copies=host_copies,
        kv_cache=kv_cache,
        streams_from=("cpu",),
    )
    workload = Workload(batch_size=batch, prompt_tokens=10, new_tokens=5, dtype="float16")
    return problem_of(graph, _round_machine(), workload, settings, RUNTIME_MODEL)


def _resident(problem: Problem) -> Assignment:
    return Assignment(
        runs_on=("gpu:0",) * len(problem.units),
        stored_on=tuple(("gpu:0",) * len(unit.leaves) for unit in problem.units),
    )


def _with_second_block_on(problem: Problem, place: str) -> Assignment:
    stored_on = list(_resident(problem).stored_on)
    stored_on[2] = (place,) * len(stored_on[2])  # embed, layers.0, layers.1, head
    return Assignment(runs_on=("gpu:0",) * 4, stored_on=tuple(stored_on))


def test_weights_and_cache() -> None:
    problem = _problem()
    part = memory(problem, _resident(problem))["gpu:0"]
    assert part["decode"].weights == 2 * BLOCK_BYTES + 2 * TABLE_BYTES
    # 4·hidden bytes a token and block; prefill leaves 10 tokens, four decode steps make 14; batch 2.
    assert part["prefill"].kv == 2 * 2 * 4 * HIDDEN * 10
    assert part["decode"].kv == 2 * 2 * 4 * HIDDEN * 14
    # Prefill peaks in `up`: 20·hidden bytes for each of 2·10 tokens.
    assert part["prefill"].activations == 20 * HIDDEN * 20
    # In decode the logits win: 2 sequences of 256 logits in 2 bytes, and generate()'s float32 copy.
    assert part["decode"].activations == max(2 * 20 * HIDDEN, 2 * VOCABULARY * 6)


def test_streaming_takes_staging_for_the_largest_module_only() -> None:
    problem = _problem()
    part = memory(problem, _with_second_block_on(problem, "cpu"))
    # attention, up and down are 4·64² weights each; one is on the GPU at a time. The worst moment is in
    # `up`, which has both the highest activations and as much to stage as the others.
    assert part["gpu:0"]["prefill"].staging == 4 * HIDDEN**2 * 2
    assert part["gpu:0"]["prefill"].weights == BLOCK_BYTES + 2 * TABLE_BYTES
    assert part["cpu"]["prefill"].weights == BLOCK_BYTES


@pytest.mark.parametrize("host_copies, rate", [("pinned", 1e9), ("pageable", 0.5e9)])
def test_streaming_time_is_bytes_over_the_link_and_work_per_tensor(host_copies: str, rate: float) -> None:
    problem = _problem(host_copies)
    resident = time(problem, _resident(problem))["decode"]
    streamed = time(problem, _with_second_block_on(problem, "cpu"))["decode"]
    assert resident.weight_movement == 0
    assert streamed.weight_movement == pytest.approx(BLOCK_BYTES / rate)
    # Three tensors at 1 ms, and a hook of 20 µs on each of the eight modules now that two places are used.
    assert streamed.host_overhead - resident.host_overhead == pytest.approx(3e-3 + 8 * 2e-5)


def test_disk_adds_the_read_to_the_pageable_copy() -> None:
    problem = _problem()
    disk = problem.scenario.profile.disk
    assert disk is not None
    streamed = time(problem, _with_second_block_on(problem, "disk"))["decode"]
    read = BLOCK_BYTES / disk.read_bytes_per_s.value + 3 * disk.latency_s.value
    assert streamed.weight_movement == pytest.approx(read + BLOCK_BYTES / 0.5e9)


def test_the_call_is_one_prefill_and_a_step_for_each_further_token() -> None:
    problem = _problem()
    times = time(problem, _resident(problem))
    expected = times["prefill"].total + 4 * times["decode"].total
    assert objective_s(problem, times) == pytest.approx(expected)


def test_host_work_hides_kernels_or_is_hidden() -> None:
    problem = _problem()
    decode = time(problem, _resident(problem))["decode"]
    # embed 1, two blocks of 8 + 1 + 1, head 1 operations at 10 µs: far longer than kernels this small.
    assert decode.total == pytest.approx(22 * 1e-5)


def test_an_offloaded_cache_is_rounded_up_to_powers_of_two() -> None:
    problem = _problem(kv_cache="offloaded")
    block = problem.units[1]
    # 2 · 4·64 · 14 = 7168 bytes: keys and values of 3584 each, 4096 when pinned; one outgrown size is kept.
    assert block.kv["decode"] == 7168
    assert block.offloaded_kv_bytes == 2 * 4096 + 4096


def test_predictions_keep_their_weakest_source() -> None:
    problem = _problem()
    assert time(problem, _resident(problem))["decode"].source is Source.ASSUMED


def test_a_dtype_the_gpu_lacks_is_refused() -> None:
    graph = layered_graph(1)
    settings = ExecutionConfig(runtime="accelerate", label="test", main="gpu:0")
    workload = Workload(batch_size=1, prompt_tokens=4, new_tokens=2, dtype="bfloat16")
    with pytest.raises(InvalidInputError, match="T4 does not run bfloat16"):
        problem_of(graph, load("t4"), workload, settings, RUNTIME_MODEL)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"prompt_tokens": 0, "dtype": "float16"},
        {"new_tokens": -3, "dtype": "float16"},
        {"max_latency_s": 0.0},
        {"objective": "speed"},
        {"dtype": "int3"},
        {"batch_size": 2, "min_batch": 4},
    ],
)
def test_senseless_requests_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        Request(**arguments).workload("float16")  # type: ignore[arg-type]


def test_the_ladder_steps_by_a_sixteenth_at_most() -> None:
    assert BATCH_LADDER[0] == 1
    for smaller, larger in pairwise(BATCH_LADDER):
        assert smaller < larger <= max(smaller + 1, smaller * 1.0625)
