"""What ZeRO-Inference costs, worked out by hand, and what its configuration says."""

import msgspec
import pytest

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment
from planner.cost.memory import memory
from planner.cost.predict import predict
from planner.cost.problem import Problem
from planner.cost.runtime_model import Scenario
from planner.cost.time import time
from planner.graph.model import Model
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.runtimes.zero_inference.model import RUNTIME_MODEL
from planner.runtimes.zero_inference.parameters import marked, parameters
from planner.runtimes.zero_inference.sizes import sizes_for
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.choose import make_plan

HIDDEN, VOCABULARY, LAYERS = 64, 256, 3
#: Of a block: 4·64² in its attention, and 4·64² in each of two linear layers.
MATRIX = 4 * HIDDEN**2
TABLE = VOCABULARY * HIDDEN


def way(profile: HardwareProfile, store: str, num_ranks: int, bits: int | None = None) -> ExecutionConfig:
    """The law's own settings of that kind."""
    (found,) = [
        one
        for one in RUNTIME_MODEL.configurations(profile)
        if (one.streams_from, one.num_ranks) == ((store,), num_ranks)
        and (one.weight_bits, one.kv_cache) == (bits, "device")
    ]
    return found


def problem(profile: HardwareProfile, settings: ExecutionConfig, *, layers: int = LAYERS) -> Problem:
    graph = layered_graph(layers, hidden=HIDDEN, vocabulary=VOCABULARY)
    workload = Workload(batch_size=1, prompt_tokens=8, new_tokens=4, dtype="float16")
    return problem_of(graph, profile, workload, settings, RUNTIME_MODEL)


def streamed(found: Problem) -> Assignment:
    """Everything in the store."""
    (store,) = found.scenario.execution.streams_from
    return Assignment(
        runs_on=("gpu:0",) * len(found.units),
        stored_on=tuple((store,) * len(unit.leaves) for unit in found.units),
    )


def test_no_gpu_no_zero_inference() -> None:
    profile = load("cpu-16c-64g")
    assert RUNTIME_MODEL.configurations(profile) == ()
    assert "no GPU" in RUNTIME_MODEL.absent(profile)


def test_ways_on_one_gpu_and_on_all() -> None:
    one, eight = load("a100-80g"), load("8xa100-80g")
    assert {(s.streams_from, s.num_ranks) for s in RUNTIME_MODEL.configurations(one)} == {
        (("cpu",), 1),
        (("disk",), 1),
    }
    both = {(*s.streams_from, s.num_ranks) for s in RUNTIME_MODEL.configurations(eight)}
    assert {("cpu", 1), ("cpu", 8), ("disk", 8), ("peers", 8)} <= both
    assert ("peers", 1) not in both
    without = msgspec.structs.replace(one, disk=None)
    assert {s.streams_from for s in RUNTIME_MODEL.configurations(without)} == {("cpu",)}
    assert all(s.num_streams == s.num_ranks for s in RUNTIME_MODEL.configurations(eight))


def test_one_rank_copies_all_of_it_over_its_link() -> None:
    profile = load("a100-80g")
    link = profile.host_to_device
    assert link is not None
    moved = RUNTIME_MODEL.movement(
        problem(profile, way(profile, "cpu", 1)).scenario,
        num_bytes=10**9,
        num_tensors=2,
        stored_on="cpu",
        runs_on="gpu:0",
    )
    assert moved.copy_s == pytest.approx(2 * link.latency_s.value + 1e9 / link.pinned_bytes_per_s.value)
    # fetching and releasing a tensor is host work of five operations
    assert moved.host_s == pytest.approx(2 * 5 * profile.host.op_overhead_s.value)


def test_eight_ranks_copy_an_eighth_each_and_gather_the_rest() -> None:
    profile = load("8xa100-80g")
    link, peer, gpu = profile.host_to_device, profile.peer, profile.gpu
    assert link is not None
    assert peer is not None
    assert gpu is not None
    moved = RUNTIME_MODEL.movement(
        problem(profile, way(profile, "cpu", 8)).scenario,
        num_bytes=8 * 10**9,
        num_tensors=1,
        stored_on="cpu",
        runs_on="gpu:0",
    )
    memory_s = 8e9 / profile.host.memory_bandwidth_bytes_per_s.value
    copy = max(link.latency_s.value + 1e9 / link.pinned_bytes_per_s.value, memory_s)
    gathered = peer.latency_s.value + 7e9 / peer.pinned_bytes_per_s.value
    # Each part of what was gathered together is copied into its place: read and written.
    parted = 2 * 8e9 / (gpu.memory_bandwidth_bytes_per_s.value * gpu.bandwidth_efficiency.value)
    assert moved.copy_s == pytest.approx(copy + gathered + parted)
    on_gpus = RUNTIME_MODEL.movement(
        problem(profile, way(profile, "peers", 8)).scenario,
        num_bytes=8 * 10**9,
        num_tensors=1,
        stored_on="peers",
        runs_on="gpu:0",
    )
    assert on_gpus.copy_s == pytest.approx(gathered + parted)


def test_nvme_is_read_while_the_part_before_is_copied() -> None:
    profile = load("a100-80g")
    disk = profile.disk
    assert disk is not None
    moved = RUNTIME_MODEL.movement(
        problem(profile, way(profile, "disk", 1)).scenario,
        num_bytes=10**9,
        num_tensors=1,
        stored_on="disk",
        runs_on="gpu:0",
    )
    assert moved.copy_s == pytest.approx(disk.latency_s.value + 1e9 / disk.read_bytes_per_s.value)


def packed_elements(numel: int, bits: int) -> int:
    """16-bit elements: codes, and a scale and a minimum for each of the groups of 64."""
    return numel * bits // 16 + 2 * numel // 64


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_move_and_stay_packed_and_the_others_as_they_are(bits: int) -> None:
    profile = load("a100-80g")
    link = profile.host_to_device
    assert link is not None
    found = problem(profile, way(profile, "cpu", 1, bits))
    leaves = {leaf.leaf.entries[0]: leaf for unit in found.units for leaf in unit.leaves}
    # Only `up` and `down` are Linears of a block; the attention's matrix has another class.
    for name, numel in (
        ("embed", TABLE),
        ("head", TABLE),
        ("layers.0.attention", MATRIX),
        ("layers.0.up", packed_elements(MATRIX, bits)),
        ("layers.2.down", packed_elements(MATRIX, bits)),
    ):
        leaf = leaves[name]
        assert leaf.stored_bytes == leaf.moved_bytes == 2 * numel
        moved = found.movement(leaf, "cpu", "gpu:0")
        assert moved.copy_s == pytest.approx(link.latency_s.value + 2 * numel / link.pinned_bytes_per_s.value)
    resident = Assignment(
        runs_on=("gpu:0",) * len(found.units),
        stored_on=tuple(("gpu:0",) * len(unit.leaves) for unit in found.units),
    )
    held = 2 * (2 * TABLE + LAYERS * (MATRIX + 2 * packed_elements(MATRIX, bits)))
    assert memory(found, resident)["gpu:0"]["decode"].weights == held


def test_a_decoded_copy_lies_beside_the_packed_weight_while_its_module_runs() -> None:
    profile = load("a100-80g")
    peaks = [
        next(unit.peak["decode"] for unit in problem(profile, way(profile, "cpu", 1, bits)).units[1:])
        for bits in (None, 8, 4)
    ]
    # 16 bits for each weight; with 4 bits the codes as well, a byte each. `up` leaves 20·hidden bytes.
    assert peaks[1:] == [20 * HIDDEN + 2 * MATRIX, 20 * HIDDEN + 3 * MATRIX]
    assert peaks[0] == 20 * HIDDEN


def test_what_is_quantized_is_read_unpacked_while_loading() -> None:
    profile = load("a100-80g")
    plain, coded = (problem(profile, way(profile, "cpu", 1, bits)) for bits in (None, 4))
    times = [predict(found, streamed(found)).load_s for found in (plain, coded)]
    assert times[0] == pytest.approx(times[1])


def test_nothing_to_quantize_is_a_reason() -> None:
    profile = load("a100-80g")
    graph = layered_graph(2, hidden=HIDDEN, vocabulary=VOCABULARY)
    nodes = tuple(msgspec.structs.replace(node, class_name="Conv1D") for node in graph.nodes)
    without = msgspec.structs.replace(graph, nodes=nodes)
    workload = Workload(batch_size=1, prompt_tokens=8, new_tokens=4, dtype="float16")
    coded = way(profile, "cpu", 1, 4)
    assert RUNTIME_MODEL.why_not(Scenario.whole(graph, profile, workload, coded, RUNTIME_MODEL)) is None
    assert (
        RUNTIME_MODEL.why_not(
            Scenario.whole(without, profile, workload, way(profile, "cpu", 1), RUNTIME_MODEL)
        )
        is None
    )
    reason = RUNTIME_MODEL.why_not(Scenario.whole(without, profile, workload, coded, RUNTIME_MODEL))
    assert reason == "Layered: no Linear in its blocks is chosen, and nothing else is quantized"
    assert "float16 weights only" in str(
        RUNTIME_MODEL.why_not(
            Scenario.whole(
                graph, profile, msgspec.structs.replace(workload, dtype="bfloat16"), coded, RUNTIME_MODEL
            )
        )
    )


def test_the_store_holds_everything_whatever_is_resident() -> None:
    profile = load("a100-80g")
    found = problem(profile, way(profile, "cpu", 1))
    # Powers of two already: the embedding, the head and three matrices in each of three blocks.
    stored = 2 * (2 * TABLE + LAYERS * 3 * MATRIX)
    assert found.buffers.host == stored
    everything = Assignment(
        runs_on=("gpu:0",) * len(found.units),
        stored_on=tuple(("gpu:0",) * len(unit.leaves) for unit in found.units),
    )
    for assignment in (streamed(found), everything):
        host = memory(found, assignment)["cpu"]["decode"]
        assert host.weights == 0
        assert host.staging == stored
    gpu = memory(found, streamed(found))["gpu:0"]["decode"]
    assert gpu.weights == sum(unit.memory["gpu"]["prefill"].weights for unit in found.units)


def test_quantizing_needs_the_whole_model_in_host_memory_first() -> None:
    profile = load("a100-80g")
    plain, coded = (problem(profile, way(profile, "cpu", 1, bits)).buffers for bits in (None, 8))
    # Codes of one byte, and 4 bytes of scale and minimum for each 64 of them. Rounded up to a power of two,
    # the 17408 bytes of a quantized matrix take as many as its plain 32768.
    assert 2 * packed_elements(MATRIX, 8) == 17408
    assert plain.host == 2 * (2 * TABLE + LAYERS * 3 * MATRIX)
    assert coded.host == 2 * plain.host
    assert coded.unpacked == 2 * LAYERS * 2 * (MATRIX - packed_elements(MATRIX, 8))
    # The largest matrix of a block is the attention's, which is not quantized.
    assert coded.device == plain.device


def test_a_store_on_the_gpus_is_shared_among_them() -> None:
    profile = load("8xa100-80g")
    found = problem(profile, way(profile, "peers", 8))
    stored = 2 * (2 * TABLE + LAYERS * 3 * MATRIX)
    sizes = sizes_for(found.scenario.graph)
    whole = TABLE * 2 + LAYERS * 3 * MATRIX
    ahead = 2 * min(sizes.max_live + sizes.prefetch_bucket, whole)
    assert found.buffers.device == ahead + stored // 8
    assert found.buffers.host == 0
    by_device = memory(found, streamed(found))
    assert set(by_device) == {"cpu", *(f"gpu:{rank}" for rank in range(8))}
    assert by_device["gpu:7"] == by_device["gpu:0"]


def test_nvme_takes_disk_for_all_and_memory_for_buffers() -> None:
    profile = load("8xa100-80g")
    found = problem(profile, way(profile, "disk", 8))
    assert found.buffers.disk == 2 * (2 * TABLE + LAYERS * 3 * MATRIX)
    sizes = sizes_for(found.scenario.graph)
    # Parts below 1 MiB stay in memory; here that is all of them, and the buffers stand by.
    parts = 2 * (2 * TABLE + LAYERS * 3 * MATRIX) // 8
    staged = sizes.num_buffers * (max(TABLE, MATRIX) // 8) * 2
    assert found.buffers.host == 8 * (parts + (1 << (staged - 1).bit_length()))


def test_hooks_are_always_there() -> None:
    profile = load("a100-80g")
    found = problem(profile, way(profile, "cpu", 1))
    resident = Assignment(
        runs_on=("gpu:0",) * len(found.units),
        stored_on=tuple(("gpu:0",) * len(unit.leaves) for unit in found.units),
    )
    num_modules = sum(len(unit.unit.nodes) for unit in found.units)
    spent = time(found, resident)["decode"]
    # Kernels of this size end before the host has issued them.
    assert spent.host_overhead >= 0.99 * num_modules * RUNTIME_MODEL.hook(profile).value


def test_thresholds_keep_what_deepspeed_would_keep() -> None:
    found = parameters(layered_graph(2, hidden=HIDDEN, vocabulary=VOCABULARY, tied=True))
    assert sum(one.num_elements for one in found) == TABLE + 2 * 3 * MATRIX
    small = marked(found, each=MATRIX, together=10**9)
    assert small == {one.fqn for one in found}
    # Two fit; the third would exceed, and nothing after it is smaller.
    assert len(marked(found, each=MATRIX, together=2 * MATRIX)) == 2
    assert marked(found, each=MATRIX - 1, together=10**9) == frozenset()


def test_a_plan_that_only_zero_inference_can_make_fits() -> None:
    """Host memory of eight GPUs' machine, one link each: the weights of a model that no GPU holds."""
    graph = layered_graph(24, hidden=8192, vocabulary=32000)
    model = Model(name="layered", auto_class="causal-lm", dtype="float16", graph=graph)
    profile = apply(load("8xa100-80g"), gpu_memory_bytes=int(12e9))
    # A long prompt leaves room for few sequences: few batches are tried.
    request = Request(runtimes=("zero-inference",), objective="throughput", prompt_tokens=2048, new_tokens=4)
    plan = make_plan(model, profile, request)
    assert plan.runtime == "zero-inference"
    assert plan.num_streams == plan.num_ranks
    for phases in plan.prediction.memory.values():
        for part in phases.values():
            assert part.total <= part.capacity
