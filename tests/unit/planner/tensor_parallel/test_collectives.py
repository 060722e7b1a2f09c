"""NCCL's tuning model by hand, and what the ranks of a forward send each other."""

import pytest

from fixtures.graphs import layered_graph
from planner.cost.runtime_model import Scenario
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import Fabric
from planner.schema.quantity import Quantity, Source
from planner.schema.workload import Workload
from planner.tensor_parallel.all_reduce import all_gather_s, all_reduce_s, communicator_bytes
from planner.tensor_parallel.communication import communication_s
from planner.tensor_parallel.rules import DEEPSPEED_TP, KERNEL_INJECTION, TRANSFORMERS_TP, CutRules
from planner.tensor_parallel.runtime_model import TensorParallelRuntime
from planner.tensor_parallel.shard import sharded
from planner.tracing.store import graph_for


def _fabric(kind: str, rate: float) -> Fabric:
    quantity = Quantity(value=rate, source=Source.ASSUMED, note="test")
    return Fabric(kind="nvlink" if kind == "nvlink" else "pcie", bus_bytes_per_s=quantity)


NVLINK, PCIE = _fabric("nvlink", 200e9), _fabric("pcie", 10e9)


def test_small_messages_go_by_the_protocol_of_least_latency() -> None:
    # LL over 8 ranks: 6.6 µs and 14 steps of 0.6; 14/8 of the bytes at a quarter of the bus.
    assert all_reduce_s(8192, 8, NVLINK) == pytest.approx(6.6e-6 + 14 * 0.6e-6 + 8192 * 14 / 8 / 50e9)


def test_middling_messages_go_by_ll128_and_large_ones_by_simple() -> None:
    middling, large = 4 * 2**20, 2**30
    assert all_reduce_s(middling, 8, NVLINK) == pytest.approx(
        14e-6 + 14 * 1.9e-6 + middling * 14 / 8 / (0.92 * 200e9)
    )
    assert all_reduce_s(large, 8, NVLINK) == pytest.approx(8.4e-6 + 14 * 3.4e-6 + large * 14 / 8 / 200e9)


def test_pcie_has_no_ll128_and_longer_steps() -> None:
    # Two ranks: two steps, each sends half twice.
    assert all_reduce_s(2**20, 2, PCIE) == pytest.approx(8.4e-6 + 2 * 5.7e-6 + 2**20 / 10e9)


def test_latency_grows_with_the_ring_and_a_gather_is_half_of_a_sum() -> None:
    times = [all_reduce_s(1024, ranks, NVLINK) for ranks in (2, 4, 8, 16)]
    assert times == sorted(times)
    assert all_gather_s(2**30, 8, NVLINK) == pytest.approx(8.4e-6 + 7 * 3.4e-6 + 2**30 * 7 / 8 / 200e9)


def test_one_rank_sends_nothing() -> None:
    assert all_reduce_s(2**20, 1, NVLINK) == 0.0
    assert communicator_bytes(1, NVLINK) == 0
    assert communicator_bytes(8, NVLINK) > communicator_bytes(8, PCIE) > 0


@pytest.mark.parametrize("rules", [DEEPSPEED_TP, TRANSFORMERS_TP, KERNEL_INJECTION])
def test_two_sums_a_layer_and_the_vocabularys(rules: CutRules) -> None:
    graph = graph_for(resolve("llama-2-7b"))
    workload = Workload(batch_size=4, prompt_tokens=16, new_tokens=8, dtype="float16")
    found = communication_s(sharded(graph, 8, rules), workload, rules, 8, NVLINK)
    for phase, tokens in (("prefill", 64), ("decode", 4)):
        hidden = all_reduce_s(tokens * 4096 * 2, 8, NVLINK)
        logits = 4 * 32000 * 2  # Of the last position alone.
        vocabulary = {
            "deepspeed-tp": all_reduce_s(logits, 8, NVLINK),
            "transformers-tp": all_gather_s(logits, 8, NVLINK) + hidden,
            "kernel-injection": 0.0,
        }[rules.name]
        assert found[phase] == pytest.approx(64 * hidden + vocabulary)


def test_experts_are_summed_once_a_layer() -> None:
    graph = graph_for(resolve("mixtral-8x7b"))
    workload = Workload(batch_size=2, prompt_tokens=8, new_tokens=8, dtype="bfloat16")
    found = communication_s(sharded(graph, 4, TRANSFORMERS_TP), workload, TRANSFORMERS_TP, 4, NVLINK)
    hidden = all_reduce_s(2 * 4096 * 2, 4, NVLINK)
    # 32 attentions, 32 stacks of experts, one embedding.
    assert found["decode"] == pytest.approx(65 * hidden + all_gather_s(2 * 32000 * 2, 4, NVLINK))


WORKLOAD = Workload(batch_size=1, prompt_tokens=8, new_tokens=8, dtype="float16")


class _Runtime(TensorParallelRuntime):
    name = "deepspeed-tp"
    rules = DEEPSPEED_TP


def test_degrees_worth_pricing_are_powers_of_two_and_all() -> None:
    assert [s.num_ranks for s in _Runtime().configurations(load("g5.12xlarge"))] == [2, 4]
    assert [s.num_ranks for s in _Runtime().configurations(load("6xt4"))] == [2, 4, 6]
    assert _Runtime().configurations(load("t4")) == ()
    assert _Runtime().absent(load("t4")) == "it needs at least 2 GPUs, and t4 has 1"
    assert {s.num_streams for s in _Runtime().configurations(load("8xt4"))} == {1}


def test_presharded_ranks_share_the_disk_and_whole_checkpoints_are_read_by_each() -> None:
    # p4de: 16 GB/s of disk, 10 GB/s from pageable memory to each GPU.
    profile, runtime_model = load("p4de.24xlarge"), _Runtime()
    settings = ExecutionConfig(runtime="deepspeed-tp", label="", main="gpu:0", num_ranks=8)
    link = profile.host_to_device
    assert link is not None
    copied = 1e9 / link.pageable_bytes_per_s.value + link.latency_s.value
    scenario = Scenario.whole(layered_graph(1), profile, WORKLOAD, settings, runtime_model)
    shards = runtime_model.load_s(scenario, read_bytes=1_000_000_000, device_bytes=1_000_000_000)
    assert shards == pytest.approx(8e9 / 16e9 + copied)
    whole = runtime_model.whole_load_s(scenario, model_bytes=8_000_000_000, device_bytes=1_000_000_000)
    assert whole == pytest.approx(64e9 / 16e9 + copied)


def test_why_not_names_the_degrees_that_work() -> None:
    graph = graph_for(resolve("gpt2-xl"))
    settings = ExecutionConfig(runtime="deepspeed-tp", label="", main="gpu:0", num_ranks=2)
    runtime_model = _Runtime()
    reason = runtime_model.why_not(Scenario.whole(graph, load("2xt4"), WORKLOAD, settings, runtime_model))
    assert reason is not None
    assert reason.startswith("the 25 groups of heads or features of transformer.h.0.attn.c_attn")
    assert reason.endswith("do not divide over 2 ranks; 5, 25 work")
