"""Bytes of a two-block model, worked out by hand in the comments."""

import pytest

from planner.cost.memory import (
    device_memory,
    kept_pages_max_tokens,
    least_peak,
    memory,
    runtime_term,
    stored_weights,
)
from planner.cost.memory_terms import MemoryTerm
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO
from planner.schema.breakdown import MemoryBreakdown, Shortage, shortage

from .by_hand import (
    BLOCK_BYTES,
    HIDDEN,
    MATRIX_BYTES,
    MIB,
    MODEL_BYTES,
    TABLE_BYTES,
    VOCABULARY,
    problem,
    resident,
    round_machine,
    with_second_block_on,
)


def test_weights_and_cache() -> None:
    priced = problem()
    part = memory(priced, resident(priced))["gpu:0"]
    assert part["decode"].weights == 2 * BLOCK_BYTES + 2 * TABLE_BYTES
    # 4·hidden bytes a token and block; prefill leaves 10 tokens, four decode steps make 14; batch 2.
    assert part["prefill"].kv == 2 * 2 * 4 * HIDDEN * 10
    assert part["decode"].kv == 2 * 2 * 4 * HIDDEN * 14
    # Prefill peaks in `up`: 20·hidden bytes for each of 2·10 tokens.
    assert part["prefill"].activations == 20 * HIDDEN * 20
    # In decode the logits win: 2 sequences of 256 logits in 2 bytes, and generate()'s float32 copy.
    assert part["decode"].activations == max(2 * 20 * HIDDEN, 2 * VOCABULARY * 6)


def test_every_byte_of_a_device() -> None:
    priced = problem()
    part = memory(priced, resident(priced))
    # Slack: 96 MiB, 2 % of 14336 + 3072 transient bytes, and 0.3 · 7168 of each block's cache.
    assert part["gpu:0"]["decode"] == MemoryBreakdown(
        weights=MODEL_BYTES,
        kv=14_336,
        activations=3_072,
        context=400_000_000,
        slack=96 * MIB + 348 + 2 * 2_150,
        capacity=16_000_000_000,
    )
    # The process, and what its allocator holds at least.
    assert part["cpu"]["decode"] == MemoryBreakdown(
        context=3 * 2**30, slack=96 * MIB, capacity=priced.capacities["cpu"].total_bytes
    )
    assert list(part) == ["gpu:0", "cpu"]


def test_streaming_takes_staging_for_the_largest_module_only() -> None:
    priced = problem()
    part = memory(priced, with_second_block_on(priced, "cpu"))
    # attention, up and down are 4·64² weights each; one is on the GPU at a time. The worst moment is in
    # `up`, which has both the highest activations and as much to stage as the others.
    assert part["gpu:0"]["prefill"].staging == 4 * HIDDEN**2 * 2
    assert part["gpu:0"]["prefill"].weights == BLOCK_BYTES + 2 * TABLE_BYTES
    assert part["cpu"]["prefill"].weights == BLOCK_BYTES


def test_staging_counts_from_the_highest_activations_on() -> None:
    priced = problem()
    part = memory(priced, with_second_block_on(priced, "cpu"))["gpu:0"]["decode"]
    # `up` beside 2·20·64 live bytes; the logits' 3072 are there at another time.
    assert part.activations == 3_072
    assert part.staging == MATRIX_BYTES + 2 * 20 * HIDDEN - 3_072


def test_what_is_on_disk_is_no_memory() -> None:
    priced = problem(streams_from=("cpu", "disk"))
    part = memory(priced, with_second_block_on(priced, "disk"))
    assert part["cpu"]["decode"].weights == 0
    # The checkpoint is there too: what is not streamed from it is read once.
    assert part["disk"]["decode"].weights == BLOCK_BYTES
    assert part["disk"]["decode"].staging == MODEL_BYTES - BLOCK_BYTES
    assert part["disk"]["decode"].capacity == 225_000_000_000


def test_one_device_and_some_units() -> None:
    priced = problem(round_machine(2))
    block = priced.units[2]
    phases = device_memory(priced, "gpu:1", [block], weights_bytes=block.stored_bytes)
    # No logits on another GPU than the first: `up` has the most activations.
    assert (phases["prefill"].activations, phases["decode"].activations) == (25_600, 2_560)
    assert phases["decode"].weights == BLOCK_BYTES
    assert phases["decode"].kv == 7_168
    assert phases["decode"].staging == 0
    assert phases["decode"].slack == 96 * MIB + round(0.02 * (7_168 + 2_560)) + 2_150
    nothing = device_memory(priced, "gpu:1", [], weights_bytes=0)["decode"]
    assert nothing.total == nothing.context + 96 * MIB


def test_ranks_have_equal_gpus_and_share_the_host() -> None:
    priced = problem(round_machine(2), ZERO, runtime="zero-inference", num_ranks=2, num_streams=2)
    part = memory(priced, resident(priced))
    assert list(part) == ["gpu:0", "gpu:1", "cpu"]
    assert part["gpu:0"] == part["gpu:1"]
    assert part["cpu"]["decode"].context == 2 * 3 * 2**30


def test_a_store_of_everything_is_charged_once() -> None:
    """Where the runtime keeps all weights in one store, a leaf that is streamed from it adds nothing."""
    accelerate, zero = problem(), problem(runtime_model=ZERO, runtime="zero-inference")
    assert stored_weights(accelerate, accelerate.units[1].leaves[0], "cpu", "gpu:0") == MemoryTerm(
        weights=MATRIX_BYTES
    )
    leaf = zero.units[1].leaves[0]
    assert stored_weights(zero, leaf, "cpu", "gpu:0") == MemoryTerm()
    assert stored_weights(zero, leaf, "gpu:0", "gpu:0") == MemoryTerm(weights=MATRIX_BYTES)


def test_of_an_offloaded_cache_the_gpu_has_some_layers_and_the_host_all() -> None:
    priced = problem(kv_cache="offloaded")
    on_gpu = {
        phase: runtime_term(priced, priced.units, "gpu:0", phase, streams=False)
        for phase in ("prefill", "decode")
    }
    # One layer of 5120 bytes as it is made; later two and a half of 7168.
    assert on_gpu == {"prefill": MemoryTerm(kv=5_120), "decode": MemoryTerm(kv=17_920)}
    # Keys and values of 3584 bytes each, 4096 when pinned, and the outgrown ones: 12288 a block.
    assert runtime_term(priced, priced.units, "cpu", "decode", streams=False) == MemoryTerm(kv=2 * 12_288)


def test_buffers_are_there_where_something_is_streamed() -> None:
    zero = problem(runtime_model=ZERO, runtime="zero-inference")
    assert zero.buffers.device > 0
    for streams in (False, True):
        on_gpu = runtime_term(zero, zero.units, "gpu:0", "decode", streams=streams)
        assert on_gpu == MemoryTerm(staging=zero.buffers.device + zero.buffers.workspace)
        on_host = runtime_term(zero, zero.units, "cpu", "decode", streams=streams)
        assert on_host == MemoryTerm(staging=zero.buffers.host)


def test_the_least_peak_has_the_logits_on_the_main_device_only() -> None:
    priced = problem()
    assert least_peak(priced, [], "gpu:0", "decode") == 2 * VOCABULARY * 6
    assert least_peak(priced, [], "cpu", "decode") == 0
    assert least_peak(priced, [priced.units[1]], "cpu", "decode") == 2 * 20 * HIDDEN
    assert least_peak(priced, [priced.units[1]], "gpu:0", "prefill") == 20 * 20 * HIDDEN


def test_pages_that_are_kept_on_the_processor() -> None:
    kept, given_back = (problem(main="cpu", keeps_host_pages=keeps) for keeps in (True, False))
    with_pages = memory(kept, resident(kept))["cpu"]
    without = memory(given_back, resident(given_back))["cpu"]
    # In prefill the most comes and goes: 10240 bytes of cache and 25600 of activations. 0.8 of them.
    assert without["prefill"].transient_bytes == 35_840
    for phase in ("prefill", "decode"):
        assert with_pages[phase].slack - without[phase].slack == 28_672
    # Two sequences of 15 tokens; pages are kept as long as 2.5 times the transient bytes have room.
    room = without["prefill"].capacity - MODEL_BYTES - 3 * 2**30
    assert kept_pages_max_tokens(kept, with_pages) == int(room * 30 / (2.5 * 35_840))
    assert kept_pages_max_tokens(given_back, without) is None
    on_gpu = problem()
    assert kept_pages_max_tokens(on_gpu, memory(on_gpu, resident(on_gpu))["cpu"]) is None


@pytest.mark.parametrize(
    "weights, lack",
    [
        ({"gpu:0": 90, "cpu": 50}, None),
        ({"gpu:0": 103, "cpu": 50}, Shortage(device="gpu:0", phase="decode", num_bytes=3)),
        ({"gpu:0": 103, "cpu": 107}, Shortage(device="cpu", phase="decode", num_bytes=7)),
    ],
)
def test_the_largest_lack_is_named(weights: dict[str, int], lack: Shortage | None) -> None:
    parts = {
        device: {
            "prefill": MemoryBreakdown(weights=num_bytes - 1, capacity=100),
            "decode": MemoryBreakdown(weights=num_bytes, capacity=100),
        }
        for device, num_bytes in weights.items()
    }
    assert shortage(parts) == lack
