"""A scenario: all ranks together, one rank, another batch."""

import pytest

import planner
from fixtures.graphs import layered_graph
from planner.cost.runtime_model import Scenario
from planner.hardware.load import load
from planner.runtimes.deepspeed_tp.model import RUNTIME_MODEL as DEEPSPEED_TP
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO_INFERENCE
from planner.schema.execution import ExecutionConfig
from planner.schema.workload import Workload

GRAPH = layered_graph(2)


def whole(batch_size: int, num_ranks: int) -> Scenario:
    """ZeRO-Inference, which has every rank generate sequences of its own."""
    machine = load(f"{num_ranks}xa100-80g" if num_ranks > 1 else "a100-80g")
    workload = Workload(batch_size=batch_size, prompt_tokens=8, new_tokens=4, dtype="float16")
    execution = ExecutionConfig(
        runtime="zero-inference",
        label="test",
        main="gpu:0",
        streams_from=("cpu",),
        num_ranks=num_ranks,
        num_streams=num_ranks,
    )
    return Scenario.whole(GRAPH, machine, workload, execution, ZERO_INFERENCE)


@pytest.mark.parametrize("batch_size, num_ranks, share", [(8, 1, 8), (8, 4, 2), (9, 4, 3), (1, 4, 1)])
def test_ranks_share_the_sequences_rounded_up(batch_size: int, num_ranks: int, share: int) -> None:
    every = whole(batch_size, num_ranks)
    assert (every.workload.batch_size, every.num_sequences) == (batch_size, batch_size)
    one = every.of_one_rank()
    assert (one.workload.batch_size, one.num_sequences) == (share, batch_size)
    # ZeRO cuts tensors and not the model: the rank has the whole graph, and its units are not made anew.
    assert one.graph is every.graph
    assert one.chain is every.chain


def test_another_batch_is_of_one_rank() -> None:
    one = whole(8, 4).of_one_rank()
    larger = one.with_batch(5)
    assert (larger.workload.batch_size, larger.num_sequences) == (5, 20)
    uneven = one.with_batch(5, num_sequences=18)
    assert (uneven.workload.batch_size, uneven.num_sequences) == (5, 18)
    assert larger.chain is one.chain


def test_stages_are_for_runtimes_with_a_pipeline() -> None:
    assert whole(8, 4).num_stages == 1


def test_a_runtime_that_cuts_the_model_has_another_graph() -> None:
    machine = load("2xa100-80g")
    workload = Workload(batch_size=3, prompt_tokens=8, new_tokens=4, dtype="float16")
    execution = next(one for one in DEEPSPEED_TP.configurations(machine) if one.num_ranks == 2)
    graph = planner.load_model("opt-125m").graph
    every = Scenario.whole(graph, machine, workload, execution, DEEPSPEED_TP)
    one = every.of_one_rank()
    # All ranks work on the same sequences.
    assert one.workload.batch_size == one.num_sequences == 3
    widest = max(t.num_elements for node in graph.nodes for t in node.tensors if node.block is not None)
    cut = max(t.num_elements for node in one.graph.nodes for t in node.tensors if node.block is not None)
    assert cut == widest // 2
    assert one.chain is not every.chain
