"""What a priced problem says of itself, worked out by hand in the comments."""

import msgspec
import pytest

from planner.cost.memory_terms import MemoryTerm
from planner.cost.problem import Capacity, UnitWork
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO
from planner.schema.breakdown import TimeBreakdown

from .by_hand import BLOCK_BYTES, MATRIX_BYTES, MIB, MODEL_BYTES, given, problem, round_machine


def test_the_host_hides_behind_a_gpu_and_not_behind_itself() -> None:
    beside = UnitWork(kernel_s=3.0, dispatch_s=2.0, hook_s=2.0, asynchronous=True)
    assert beside.time(hooked=False) == TimeBreakdown(compute=3.0)
    # 2 + 2 seconds beside 3 of kernels.
    assert beside.time(hooked=True) == TimeBreakdown(compute=3.0, host_overhead=1.0)
    # Hooks that wait for the device hide behind nothing.
    assert beside.time(hooked=True, waits=True) == TimeBreakdown(compute=3.0, host_overhead=2.0)
    assert beside.time(hooked=False, waits=True) == TimeBreakdown(compute=3.0)
    itself = UnitWork(kernel_s=3.0, dispatch_s=2.0, hook_s=2.0, asynchronous=False)
    assert itself.time(hooked=False) == TimeBreakdown(compute=3.0, host_overhead=2.0)
    assert itself.time(hooked=True) == TimeBreakdown(compute=3.0, host_overhead=4.0)


def test_a_unit_with_all_its_leaves() -> None:
    block = problem().units[1]
    assert block.stored_bytes == BLOCK_BYTES
    # Two sequences of 14 tokens of 256 bytes, and 0.3 of them.
    assert block.resident("gpu", "decode") == MemoryTerm(weights=BLOCK_BYTES, kv=7_168, fragmentation=2_150)
    assert block.resident("cpu", "prefill") == MemoryTerm(weights=BLOCK_BYTES, kv=5_120)


def test_an_offloaded_cache_is_rounded_up_to_powers_of_two() -> None:
    priced = problem(kv_cache="offloaded")
    block = priced.units[1]
    # 2 · 4·64 · 14 = 7168 bytes: keys and values of 3584 each, 4096 when pinned; one outgrown size is kept.
    assert block.kv["decode"] == 7168
    assert block.offloaded_kv_bytes == 2 * 4096 + 4096
    assert priced.units[0].offloaded_kv_bytes == 0
    assert priced.offloaded_kv_bytes == 2 * 12_288


def test_every_stream_offloads_a_cache() -> None:
    execution = {"runtime": "zero-inference", "num_ranks": 2, "num_streams": 2, "kv_cache": "offloaded"}
    assert problem(round_machine(2), ZERO, **execution).offloaded_kv_bytes == 2 * 2 * 12_288


def test_what_terms_may_charge() -> None:
    # The allocator's floor is gone before anything is placed.
    capacity = Capacity(total_bytes=500 * MIB, context_bytes=100 * MIB)
    assert capacity.available_bytes == (500 - 100 - 96) * MIB


def test_a_disk_that_is_too_small() -> None:
    base = round_machine()
    assert base.disk is not None
    small = msgspec.structs.replace(base, disk=msgspec.structs.replace(base.disk, capacity_bytes=given(2e5)))
    assert problem(small, streams_from=("cpu", "disk")).disk_deficit_bytes == MODEL_BYTES - 200_000
    assert problem(small, streams_from=("cpu",)).disk_deficit_bytes == 0
    assert problem(streams_from=("cpu", "disk")).disk_deficit_bytes == 0


def test_a_call_is_one_prefill_and_four_steps() -> None:
    assert (problem().weight("prefill"), problem().weight("decode")) == (1, 4)


def test_a_leaf_moves_at_the_runtimes_rate() -> None:
    priced = problem()
    movement = priced.movement(priced.units[1].leaves[0], "cpu", "gpu:0")
    assert movement.copy_s == pytest.approx(MATRIX_BYTES / 1e9)
    assert movement.host_s == pytest.approx(1e-3)


def test_an_offloaded_cache_moves_out_and_back() -> None:
    priced, on_gpu = problem(kv_cache="offloaded"), problem()
    embed, block = priced.units[:2]
    assert priced.kv_movement_s(block, "prefill") == pytest.approx(5_120 / 1e9)
    # Out and back at once.
    assert priced.kv_movement_s(block, "decode") == pytest.approx(7_168 / 1e9)
    assert priced.kv_movement_s(embed, "decode") == 0
    assert on_gpu.kv_movement_s(block, "decode") == 0


def test_the_slower_way_of_an_offloaded_cache_shows() -> None:
    base = round_machine()
    assert base.host_to_device is not None
    slow = msgspec.structs.replace(base.host_to_device, pinned_bytes_per_s=given(0.1e9))
    priced = problem(msgspec.structs.replace(base, host_to_device=slow), kv_cache="offloaded")
    assert priced.kv_movement_s(priced.units[1], "prefill") == pytest.approx(5_120 / 1e9)
    assert priced.kv_movement_s(priced.units[1], "decode") == pytest.approx(7_168 / 0.1e9)


def test_a_unit_on_the_processor_takes_the_residual_stream_there_and_back() -> None:
    # 2·64 bytes of 20 tokens, and of 2, at 0.5 GB/s each way.
    assert problem().crossing_s("prefill") == pytest.approx(2 * 2_560 / 0.5e9)
    assert problem().crossing_s("decode") == pytest.approx(2 * 256 / 0.5e9)


def test_the_kind_of_the_main_device_and_its_numbers() -> None:
    priced = problem()
    assert (priced.main_kind, problem(main="cpu").main_kind) == ("gpu", "cpu")
    assert priced.scenario.profile.host.op_overhead_s in priced.quantities("gpu")
    assert set(priced.engines["gpu"].quantities) < set(priced.quantities("gpu"))
