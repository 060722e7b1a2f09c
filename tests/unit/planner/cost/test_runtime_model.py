"""A scenario: of all ranks together, of one of them, and at another batch."""

import pytest

from fixtures.graphs import layered_graph
from planner.cost import runtime_model
from planner.cost.placement_units import chain_of
from planner.cost.runtime_model import Buffers, Movement, RuntimeModel, Scenario
from planner.graph.groups import placement_units
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.runtimes.accelerate.model import RUNTIME_MODEL as ACCELERATE
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile

from .by_hand import GRAPH, WORKLOAD, configuration, round_machine


class HalvesRuntime(RuntimeModel):
    """Two ranks hold one of two blocks each: the least that a runtime must say, and a cut."""

    name = "halves"

    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        return ()

    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        return Movement(copy_s=0.0, host_s=0.0, quantities=())

    def rank_graph(self, graph: ModuleGraph, execution: ExecutionConfig) -> ModuleGraph:
        return layered_graph(1)


def test_a_whole_scenario() -> None:
    profile, execution = round_machine(), configuration()
    whole = Scenario.whole(GRAPH, profile, WORKLOAD, execution, ACCELERATE)
    assert (whole.graph, whole.profile, whole.execution) == (GRAPH, profile, execution)
    assert whole.num_sequences == WORKLOAD.batch_size == 2
    assert [unit.name for unit in whole.chain.units] == ["embed", "layers.0", "layers.1", "head"]
    assert whole.chain == chain_of(GRAPH, placement_units(GRAPH))
    assert Scenario.whole(GRAPH, profile, WORKLOAD, execution, ACCELERATE).chain is whole.chain


def test_equal_graphs_are_not_taken_for_one_and_few_are_kept() -> None:
    profile, execution = round_machine(), configuration()
    first, *others = (
        Scenario.whole(layered_graph(1), profile, WORKLOAD, execution, ACCELERATE) for _ in range(20)
    )
    assert all(other.chain is not first.chain for other in others)
    assert len(runtime_model._chains) == runtime_model._KEPT_CHAINS


@pytest.mark.parametrize("num_sequences, of_one", [(2, 1), (5, 3), (6, 3), (7, 4)])
def test_streams_share_the_sequences(num_sequences: int, of_one: int) -> None:
    """With two streams the fuller rank is priced."""
    execution = configuration(runtime="zero-inference", num_ranks=2, num_streams=2)
    whole = Scenario.whole(GRAPH, round_machine(2), WORKLOAD.with_batch(num_sequences), execution, ZERO)
    rank = whole.of_one_rank()
    assert (rank.workload.batch_size, rank.num_sequences) == (of_one, num_sequences)
    # The model is whole on every rank, and so is its chain.
    assert rank.graph is whole.graph
    assert rank.chain is whole.chain


def test_ranks_that_work_on_the_same_sequences_have_them_all() -> None:
    execution = configuration(num_ranks=2)
    rank = Scenario.whole(GRAPH, round_machine(2), WORKLOAD, execution, ACCELERATE).of_one_rank()
    assert rank.workload == WORKLOAD


def test_a_rank_of_a_cut_model_has_a_chain_of_its_own() -> None:
    execution = configuration(runtime="halves", num_ranks=2)
    rank = Scenario.whole(GRAPH, round_machine(2), WORKLOAD, execution, HalvesRuntime()).of_one_rank()
    assert rank.graph == layered_graph(1)
    assert [unit.name for unit in rank.chain.units] == ["embed", "layers.0", "head"]


def test_another_batch_of_one_rank() -> None:
    execution = configuration(runtime="zero-inference", num_ranks=2, num_streams=2)
    rank = Scenario.whole(GRAPH, round_machine(2), WORKLOAD, execution, ZERO).of_one_rank()
    larger = rank.with_batch(4)
    assert (larger.workload.batch_size, larger.num_sequences) == (4, 8)
    assert larger.chain is rank.chain
    # The last of the ranks may have one sequence less.
    uneven = rank.with_batch(4, num_sequences=7)
    assert (uneven.workload.batch_size, uneven.num_sequences) == (4, 7)
    assert (uneven.workload.prompt_tokens, uneven.workload.new_tokens) == (10, 5)


def test_only_a_pipeline_has_stages() -> None:
    profile = load("4xt4")
    stages = [
        Scenario.whole(GRAPH, profile, WORKLOAD, configuration(), runtime_model).num_stages
        for runtime_model in (ACCELERATE, ZERO)
    ]
    assert stages == [4, 1]


def test_what_a_runtime_says_unless_it_says_otherwise() -> None:
    runtime_model, profile = HalvesRuntime(), round_machine()
    scenario = Scenario.whole(GRAPH, profile, WORKLOAD, configuration(), runtime_model)
    assert runtime_model.why_not(scenario) is None
    assert runtime_model.buffers(scenario) == Buffers()
    assert runtime_model.streamed_peaks(scenario, lambda node, phase: 0) is None
    assert runtime_model.communication_s(scenario) == {"prefill": 0.0, "decode": 0.0}
    assert runtime_model.hook(profile).value == 2e-5
    assert runtime_model.absent(profile) == f"{profile.name} has 1 GPUs"
    # 0.9 GB/s from disk, then 0.5 GB/s from pageable memory.
    loaded_s = runtime_model.load_s(scenario, read_bytes=9_000_000, device_bytes=5_000_000)
    assert loaded_s == pytest.approx(0.01 + 0.01)
