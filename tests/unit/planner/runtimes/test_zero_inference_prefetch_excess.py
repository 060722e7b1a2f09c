"""What ZeRO fetches ahead, walked through by hand."""

import msgspec

from fixtures.graphs import layered_graph
from fixtures.plans import problem_of
from planner.cost.assignment import Assignment
from planner.cost.memory import memory
from planner.cost.memory_terms import peak_bytes
from planner.cost.problem import Problem
from planner.hardware.load import load
from planner.runtimes.zero_inference.model import ZeroInferenceRuntime
from planner.runtimes.zero_inference.prefetch_excess import Excess, excesses
from planner.runtimes.zero_inference.sizes import sizes_for
from planner.schema.workload import Workload

HIDDEN, LAYERS = 64, 3
#: Three in each block: attention, up and down.
MATRIX = 4 * HIDDEN**2
VOCABULARY = 10 * MATRIX // HIDDEN
TABLE = VOCABULARY * HIDDEN
WORKLOAD = Workload(batch_size=2, prompt_tokens=8, new_tokens=4, dtype="float16")


def worst(found: tuple[Excess, ...]) -> dict[str, tuple[int, frozenset[str]]]:
    """Module → the most that is there beyond the limit in whole matrices, and who is to blame."""
    result: dict[str, tuple[int, frozenset[str]]] = {}
    for one in found:
        matrices, rest = divmod(one.num_elements, MATRIX)
        assert rest == 0
        result[one.node.name] = max(result.get(one.node.name, (0, frozenset())), (matrices, one.modules))
    return result


def test_a_head_comes_while_the_last_block_runs() -> None:
    graph = layered_graph(LAYERS, hidden=HIDDEN, vocabulary=VOCABULARY)
    sizes = sizes_for(graph)
    # One matrix in use and one on its way.
    assert (sizes.prefetch_bucket, sizes.max_live) == (MATRIX, 2 * MATRIX)
    # The embedding alone is ten; nothing is fetched ahead of it, for it exceeds the limit. When `down` of the
    # last block runs, one more matrix may come, and the next is the head: eleven, and ten when it runs.
    assert worst(excesses(graph, sizes)) == {
        "embed": (8, frozenset({"embed"})),
        "layers.2.down": (9, frozenset({"head"})),
        "head": (8, frozenset({"head"})),
    }


def test_a_tied_head_is_the_embedding_and_stays_if_it_is_wanted_soon() -> None:
    graph = layered_graph(LAYERS, hidden=HIDDEN, vocabulary=VOCABULARY, tied=True)
    sizes = sizes_for(graph)
    found = worst(excesses(graph, sizes))
    assert set(found) == {"embed", "layers.2.down", "head"}
    assert {blamed for _, blamed in found.values()} == {frozenset({"embed"})}
    kept = worst(excesses(graph, msgspec.structs.replace(sizes, reuse_distance=10 * TABLE)))
    # It lies there all the time, so nothing else is ever fetched ahead.
    assert {name: matrices for name, (matrices, _) in kept.items()} == {
        "embed": 8,
        **{node.name: 9 for node in graph.nodes if node.block},
        "head": 8,
    }


def test_within_generous_limits_nothing_exceeds() -> None:
    graph = layered_graph(LAYERS, hidden=HIDDEN, vocabulary=VOCABULARY)
    generous = msgspec.structs.replace(sizes_for(graph), max_live=10**9, prefetch_bucket=10**8)
    assert excesses(graph, generous) == ()


def problem() -> Problem:
    """Priced for one GPU that streams from host memory."""
    profile, runtime_model = load("a100-80g"), ZeroInferenceRuntime()
    graph = layered_graph(LAYERS, hidden=HIDDEN, vocabulary=VOCABULARY)
    return problem_of(graph, profile, WORKLOAD, runtime_model.configurations(profile)[0], runtime_model)


def needed(found: Problem, *, resident: frozenset[str]) -> int:
    """Activations and staged weights in prefill when all but some units are streamed."""
    stored_on = tuple(
        tuple("gpu:0" if unit.unit.name in resident else "cpu" for _ in unit.leaves) for unit in found.units
    )
    prefill = memory(found, Assignment(runs_on=("gpu:0",) * len(stored_on), stored_on=stored_on))["gpu:0"][
        "prefill"
    ]
    return prefill.activations + prefill.staging


def test_memory_has_room_for_what_comes_early_but_not_for_what_is_there() -> None:
    found = problem()
    live = {
        node.name: peak_bytes(node, "prefill", WORKLOAD, WORKLOAD.prompt_tokens)
        for node in found.scenario.graph.nodes
    }
    # Two matrices are always counted, which is what there is while a block runs.
    within = max(live.values()) + 2 * 2 * MATRIX
    assert needed(found, resident=frozenset({"embed", "head"})) == within
    # Eleven while the last block runs, ten while the head or the embedding itself does.
    ends = max(live["layers.2.down"] + 2 * 11 * MATRIX, live["head"] + 2 * 10 * MATRIX)
    start = live["embed"] + 2 * 10 * MATRIX
    assert needed(found, resident=frozenset()) == max(within, start, ends)
    assert needed(found, resident=frozenset({"head"})) == max(within, start)
    assert needed(found, resident=frozenset({"embed"})) == max(within, ends)
    assert start > within
    assert ends > within
