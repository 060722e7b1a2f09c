"""What a scenario becomes: units, peaks, capacities and contexts, worked out by hand in the comments."""

import msgspec
import pytest

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.build_problem import Contexts
from planner.cost.memory_terms import MemoryTerm
from planner.cost.problem import Capacity
from planner.errors import InvalidInputError
from planner.hardware.load import load
from planner.runtimes.accelerate.model import RUNTIME_MODEL
from planner.schema.workload import Workload

from .by_hand import (
    BLOCK_BYTES,
    GRAPH,
    HIDDEN,
    MATRIX_BYTES,
    TABLE_BYTES,
    VOCABULARY,
    WORKLOAD,
    configuration,
    problem,
    round_machine,
)


def test_contexts_at_the_end_of_a_phase_and_on_average() -> None:
    contexts = Contexts.of(GRAPH, WORKLOAD)
    # Four steps after 10 tokens see 11 to 14; the mean is rounded down from 12.5.
    assert contexts == Contexts(prefill=10, decode=14, mean=12)
    assert (contexts.last("prefill"), contexts.typical("prefill")) == (10, 10)
    assert (contexts.last("decode"), contexts.typical("decode")) == (14, 12)


def test_a_decoder_with_an_encoder_starts_from_one_token() -> None:
    graph = msgspec.structs.replace(GRAPH, is_encoder_decoder=True)
    assert Contexts.of(graph, WORKLOAD) == Contexts(prefill=1, decode=5, mean=3)


def test_blocks_are_priced_once_and_keep_their_names() -> None:
    embed, first, second, head = problem().units
    assert [unit.unit.name for unit in (embed, first, second, head)] == [
        "embed",
        "layers.0",
        "layers.1",
        "head",
    ]
    assert first.work is second.work
    assert [leaf.leaf.entries for leaf in second.leaves] == [
        ("layers.1.attention",),
        ("layers.1.up",),
        ("layers.1.down",),
    ]
    assert (embed.stored_bytes, first.stored_bytes, head.stored_bytes) == (
        TABLE_BYTES,
        BLOCK_BYTES,
        TABLE_BYTES,
    )


def test_the_work_of_a_block() -> None:
    decode, prefill = (problem().units[1].work["gpu"][phase] for phase in ("decode", "prefill"))
    # A step multiplies less than it reads. Attention: two rows of 16·64 bytes, its weights, and the cache of
    # 2·12 tokens of 256 bytes, twice to append and once to attend. Up and down: two rows of 4·320 bytes and
    # their weights.
    attention = 2 * 16 * HIDDEN + MATRIX_BYTES + 3 * 2 * 12 * 4 * HIDDEN
    linear = 2 * 4 * 5 * HIDDEN + MATRIX_BYTES
    assert decode.kernel_s == pytest.approx((attention + 2 * linear) / 100e9)
    # 20 tokens are multiplied for longer than everything is read.
    assert prefill.kernel_s == pytest.approx(3 * 20 * 8 * HIDDEN**2 / 1e12)
    # 8 + 1 + 1 operations of 10 µs; hooks of 20 µs on the three modules with weights.
    assert decode.dispatch_s == prefill.dispatch_s == pytest.approx(10 * 1e-5)
    assert decode.hook_s == pytest.approx(3 * 2e-5)
    assert decode.asynchronous


def test_the_memory_of_a_block() -> None:
    block = problem().units[1]
    # 4·64 bytes a token, two sequences of 10 and of 14 tokens.
    assert block.kv == {"prefill": 2 * 4 * HIDDEN * 10, "decode": 2 * 4 * HIDDEN * 14}
    # `up` has the most: 20·64 bytes a token, of 20 tokens and of 2.
    assert block.peak == {"prefill": 20 * HIDDEN * 20, "decode": 20 * HIDDEN * 2}
    # 0.3 · 7168 of a cache that grows on a GPU; none of it on the processor.
    assert block.memory["gpu"]["decode"] == MemoryTerm(kv=7168, fragmentation=2150)
    assert block.memory["cpu"]["decode"] == MemoryTerm(kv=7168)


def test_a_leaf_that_is_streamed_lies_beside_its_own_activations() -> None:
    attention, up, down = problem().units[1].leaves
    assert {leaf.stored_bytes for leaf in (attention, up, down)} == {MATRIX_BYTES}
    assert {leaf.moved_bytes for leaf in (attention, up, down)} == {MATRIX_BYTES}
    assert [leaf.streamed_peak["decode"] for leaf in (attention, up, down)] == [
        MATRIX_BYTES + live * HIDDEN * 2 for live in (12, 20, 16)
    ]
    assert all(leaf.forwards == {"prefill": 1, "decode": 1} for leaf in (attention, up, down))


def test_an_offloaded_cache_is_no_part_of_a_blocks_memory() -> None:
    block = problem(kv_cache="offloaded").units[1]
    assert block.kv["decode"] == 7168
    assert block.memory["gpu"]["decode"] == MemoryTerm()


def test_what_is_no_units() -> None:
    priced = problem()
    # 2 sequences of 256 logits in 2 bytes, and generate()'s float32 copy.
    assert priced.glue_peak == {"prefill": 2 * VOCABULARY * 6, "decode": 2 * VOCABULARY * 6}
    # Between units 2·64 bytes a token; 8·64 flow inside a block.
    assert priced.crossing_bytes == {"prefill": 2 * HIDDEN * 20, "decode": 2 * HIDDEN * 2}
    assert priced.num_decode_steps == 4
    assert priced.communication_s == {"prefill": 0.0, "decode": 0.0}


def test_a_model_that_does_not_generate_has_no_steps() -> None:
    graph = msgspec.structs.replace(GRAPH, generates=False)
    priced = problem_of(graph, round_machine(), WORKLOAD, configuration(), RUNTIME_MODEL)
    assert priced.num_decode_steps == 0
    assert priced.glue_peak == {"prefill": 0, "decode": 0}


def test_capacities_of_the_gpus_in_use_and_of_the_host() -> None:
    host_bytes = round(load("t4").host.memory_bytes.value)
    gpu = Capacity(total_bytes=16_000_000_000, context_bytes=400_000_000)
    host = Capacity(total_bytes=host_bytes, context_bytes=3 * 2**30)
    assert problem().capacities == {"gpu:0": gpu, "cpu": host}
    assert problem(round_machine(2)).capacities.keys() == {"gpu:0", "gpu:1", "cpu"}
    assert problem(main="cpu").capacities == {"cpu": host}


def test_engines_of_what_may_run() -> None:
    assert problem().engines.keys() == {"gpu"}
    assert problem(cpu_execution=True).engines.keys() == {"gpu", "cpu"}
    assert problem(main="cpu").engines.keys() == {"cpu"}


def test_a_dtype_the_gpu_lacks_is_refused() -> None:
    workload = Workload(batch_size=1, prompt_tokens=4, new_tokens=2, dtype="bfloat16")
    with pytest.raises(InvalidInputError, match="T4 does not run bfloat16"):
        problem_of(layered_graph(1), load("t4"), workload, configuration(), RUNTIME_MODEL)
