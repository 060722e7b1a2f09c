"""Seconds of a two-block model, worked out by hand in the comments."""

import pytest

from planner.cost.assignment import Assignment
from planner.cost.time import hops_s, is_hooked, objective_s, time, unit_time
from planner.hardware.load import load
from planner.runtimes.accelerate.model import RUNTIME_MODEL as ACCELERATE
from planner.runtimes.cpu.model import RUNTIME_MODEL as PROCESSOR
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO
from planner.schema.quantity import Source

from .by_hand import BLOCK_BYTES, MATRIX_BYTES, problem, resident, round_machine, with_second_block_on


@pytest.mark.parametrize("host_copies, rate", [("pinned", 1e9), ("pageable", 0.5e9)])
def test_streaming_time_is_bytes_over_the_link_and_work_per_tensor(host_copies: str, rate: float) -> None:
    priced = problem(host_copies=host_copies)
    on_gpu = time(priced, resident(priced))["decode"]
    streamed = time(priced, with_second_block_on(priced, "cpu"))["decode"]
    assert on_gpu.weight_movement == 0
    assert streamed.weight_movement == pytest.approx(BLOCK_BYTES / rate)
    # Three tensors at 1 ms, and a hook of 20 µs on each of the eight modules now that two places are used.
    assert streamed.host_overhead - on_gpu.host_overhead == pytest.approx(3e-3 + 8 * 2e-5)


def test_disk_adds_the_read_to_the_pageable_copy() -> None:
    priced = problem()
    disk = priced.scenario.profile.disk
    assert disk is not None
    streamed = time(priced, with_second_block_on(priced, "disk"))["decode"]
    read = BLOCK_BYTES / disk.read_bytes_per_s.value + 3 * disk.latency_s.value
    assert streamed.weight_movement == pytest.approx(read + BLOCK_BYTES / 0.5e9)


def test_the_call_is_one_prefill_and_a_step_for_each_further_token() -> None:
    priced = problem()
    times = time(priced, resident(priced))
    expected = times["prefill"].total + 4 * times["decode"].total
    assert objective_s(priced, times) == pytest.approx(expected)


def test_host_work_hides_kernels_or_is_hidden() -> None:
    priced = problem()
    decode = time(priced, resident(priced))["decode"]
    # embed 1, two blocks of 8 + 1 + 1, head 1 operations at 10 µs: far longer than kernels this small.
    assert decode.total == pytest.approx(22 * 1e-5)


def test_a_unit_on_the_processor_takes_its_input_there_and_back() -> None:
    priced = problem(cpu_execution=True)
    block = priced.units[1]
    there = unit_time(priced, block, "cpu", ("cpu",) * 3, "decode", hooked=False)
    # 2·64 bytes of two tokens, each way, at 0.5 GB/s.
    assert there.communication == pytest.approx(2 * 256 / 0.5e9)
    assert there.weight_movement == 0
    # The processor does not run ahead of itself: ten operations of 10 µs come on top.
    assert there.host_overhead == pytest.approx(1e-4)
    here = unit_time(priced, block, "gpu:0", ("gpu:0",) * 3, "decode", hooked=False)
    assert here.communication == 0


def test_of_a_unit_only_what_is_elsewhere_is_moved() -> None:
    priced = problem()
    block = priced.units[1]
    half = unit_time(priced, block, "gpu:0", ("gpu:0", "cpu", "gpu:0"), "prefill", hooked=False)
    assert half.weight_movement == pytest.approx(MATRIX_BYTES / 1e9)


def test_stages_hand_the_residual_stream_on_and_the_result_back() -> None:
    priced = problem(round_machine(2))
    # 2·64 bytes of two tokens at 1 GB/s: to the second GPU, and from there to the first.
    assert hops_s(priced, ("gpu:0", "gpu:0", "gpu:1", "gpu:1"), "decode") == pytest.approx(2 * 256 / 1e9)
    assert hops_s(priced, ("gpu:0", "gpu:0", "gpu:1", "gpu:0"), "decode") == pytest.approx(2 * 256 / 1e9)
    assert hops_s(priced, ("gpu:0",) * 4, "decode") == 0
    assert hops_s(priced, ("cpu",) * 4, "decode") == 0


def test_when_modules_are_hooked() -> None:
    priced = problem()
    together, apart = resident(priced), with_second_block_on(priced, "cpu")
    assert (is_hooked(ACCELERATE, together), is_hooked(ACCELERATE, apart)) == (False, True)
    assert (is_hooked(ZERO, together), is_hooked(ZERO, apart)) == (True, True)
    assert (is_hooked(PROCESSOR, together), is_hooked(PROCESSOR, apart)) == (False, False)


def test_copies_beside_the_computation_show_where_they_are_longer() -> None:
    plain, beside = problem(), problem(overlaps=True)
    in_turn = time(plain, with_second_block_on(plain, "cpu"))["decode"]
    overlapped = time(beside, with_second_block_on(beside, "cpu"))["decode"]
    assert 0 < in_turn.compute < in_turn.weight_movement
    assert overlapped.weight_movement == pytest.approx(in_turn.weight_movement - in_turn.compute)
    nothing = time(beside, resident(beside))["decode"]
    assert nothing.weight_movement == 0


def test_predictions_keep_their_weakest_source() -> None:
    measured, assumed = problem(), problem(load("t4"))
    assert time(measured, resident(measured))["decode"].source is Source.MEASURED
    # Its disk is assumed.
    assert time(measured, with_second_block_on(measured, "disk"))["decode"].source is Source.ASSUMED
    assert time(assumed, resident(assumed))["decode"].source is Source.ASSUMED


def test_everything_on_the_processor() -> None:
    priced = problem(main="cpu")
    decode = time(priced, Assignment.uniform(priced, "cpu"))["decode"]
    assert (decode.weight_movement, decode.communication) == (0, 0)
    assert decode.host_overhead == pytest.approx(22 * 1e-5)
