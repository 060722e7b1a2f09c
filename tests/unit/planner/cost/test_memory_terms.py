"""Terms of the sum of memory: what adds up, what a capacity is charged, and where pages are kept."""

import msgspec
import pytest

from planner.cost.memory_terms import (
    MemoryTerm,
    host_fragmentation_bytes,
    host_process_bytes,
    kv_bytes,
    kv_fragmentation_bytes,
    largest,
    peak_bytes,
    phase_cost,
    retains_host_pages,
    sampling_bytes,
    self_context,
    slack_bytes,
)
from planner.graph.schema import KvCost, Node
from planner.hardware.load import load

from .by_hand import GRAPH, HIDDEN, MIB, VOCABULARY, WORKLOAD

EMBED, ATTENTION = GRAPH.nodes[:2]


def test_terms_add_up_by_part() -> None:
    terms = [
        MemoryTerm(weights=1, kv=20, staging=300, fragmentation=4_000),
        MemoryTerm(weights=5, kv=60),
        MemoryTerm(fragmentation=7_000),
    ]
    assert MemoryTerm.total(terms) == MemoryTerm(weights=6, kv=80, staging=300, fragmentation=11_000)
    assert MemoryTerm.total(()) == MemoryTerm()


def test_a_capacity_is_charged_the_allocators_share_of_what_comes_and_goes() -> None:
    # 2 % beyond cache and staging; weights and fragmentation as they are.
    term = MemoryTerm(weights=10_000, kv=2_000, staging=3_000, fragmentation=400)
    assert term.charged_bytes == pytest.approx(10_000 + 400 + 1.02 * 5_000)
    assert MemoryTerm().charged_bytes == 0


@pytest.mark.parametrize("room_bytes, is_kept", [(249, False), (250, True), (251, True)])
def test_pages_are_kept_from_two_and_a_half_times_the_transient_bytes_on(
    room_bytes: int, is_kept: bool
) -> None:
    assert retains_host_pages(100, room_bytes) is is_kept
    # 0.8 of the transient bytes are lost to fragmentation then.
    assert host_fragmentation_bytes(100, room_bytes) == (80 if is_kept else 0)


@pytest.mark.parametrize("kv, lost", [(0, 0), (7_168, 2_150), (40 * MIB, 12 * MIB), (1024 * MIB, 16 * MIB)])
def test_a_share_of_a_units_cache_is_lost_up_to_a_limit(kv: int, lost: int) -> None:
    assert kv_fragmentation_bytes(kv) == lost


def test_the_allocator_holds_a_floor_and_a_share() -> None:
    assert slack_bytes(0) == 96 * MIB
    assert slack_bytes(1_000_000) == 96 * MIB + 20_000


def test_the_cache_of_a_module() -> None:
    # 4·64 bytes a token in 16 bits.
    assert kv_bytes(ATTENTION, WORKLOAD, 14) == 2 * 14 * 4 * HIDDEN
    assert kv_bytes(ATTENTION, msgspec.structs.replace(WORKLOAD, dtype="float32"), 14) == 4 * 14 * 4 * HIDDEN
    assert kv_bytes(EMBED, WORKLOAD, 14) == 0


@pytest.mark.parametrize(
    "kv, num_bytes",
    [
        # Two sequences; a window of 8 of the 14 tokens.
        (KvCost(per_token=256.0, window=8), 2 * 8 * 256),
        # A state of 100 bytes, and 3 for each of the 10 tokens of the prompt.
        (KvCost(per_token=0.0, per_sequence=100.0, per_prompt_token=3.0), 2 * (100 + 30)),
    ],
)
def test_windows_states_and_prompts(kv: KvCost, num_bytes: int) -> None:
    assert kv_bytes(msgspec.structs.replace(ATTENTION, kv=kv), WORKLOAD, 14) == num_bytes


def test_a_state_of_its_own_dtype_does_not_grow_with_the_models() -> None:
    node = msgspec.structs.replace(ATTENTION, kv=KvCost(per_token=256.0, fixed_dtype=True))
    wide = msgspec.structs.replace(WORKLOAD, dtype="float32")
    assert kv_bytes(node, wide, 14) == kv_bytes(node, WORKLOAD, 14) == 2 * 14 * 256


def test_live_bytes_of_a_module() -> None:
    # 12·64 bytes a token: 20 tokens in prefill, one of each sequence in a step.
    assert peak_bytes(ATTENTION, "prefill", WORKLOAD, 10) == 12 * HIDDEN * 20
    assert peak_bytes(ATTENTION, "decode", WORKLOAD, 14) == 12 * HIDDEN * 2
    assert peak_bytes(_never_called(), "decode", WORKLOAD, 14) == 0


def test_a_cost_is_of_the_workloads_element_size() -> None:
    assert phase_cost(ATTENTION, "decode", WORKLOAD) is ATTENTION.costs["2"].decode
    wide = msgspec.structs.replace(WORKLOAD, dtype="float32")
    assert phase_cost(ATTENTION, "prefill", wide) is ATTENTION.costs["4"].prefill
    assert phase_cost(_never_called(), "prefill", WORKLOAD) is None


def _never_called() -> Node:
    return msgspec.structs.replace(ATTENTION, num_calls=0)


def test_logits_and_their_float32_copy() -> None:
    assert sampling_bytes(GRAPH, WORKLOAD) == 2 * VOCABULARY * (2 + 4)
    assert sampling_bytes(msgspec.structs.replace(GRAPH, generates=False), WORKLOAD) == 0


def test_contexts_of_decoders_with_and_without_an_encoder() -> None:
    assert self_context(GRAPH, WORKLOAD, 4) == 14
    assert self_context(msgspec.structs.replace(GRAPH, is_encoder_decoder=True), WORKLOAD, 4) == 5


def test_a_process_is_larger_with_a_gpu() -> None:
    assert host_process_bytes(load("t4")) == 3 * 2**30
    assert host_process_bytes(load("cpu-16c-64g")) == 2**30


def test_the_largest_of_nothing_is_none() -> None:
    assert largest([]) == 0
    assert largest([3, 5, 4]) == 5
