"""Collectives of one forward: all-reduces after row-parallel products, and those of embedding and head."""

from collections.abc import Iterator

from planner.cost.memory_terms import phase_cost, self_context
from planner.graph.schema import ModuleGraph, Node
from planner.schema.breakdown import PHASES
from planner.schema.hardware import Fabric
from planner.schema.workload import Workload
from planner.tensor_parallel.all_reduce import all_gather_s, all_reduce_s
from planner.tensor_parallel.cuts import features, is_embedding, is_head, is_row, is_stack
from planner.tensor_parallel.rules import CutRules


def communication_s(
    graph: ModuleGraph, workload: Workload, rules: CutRules, num_ranks: int, fabric: Fabric
) -> dict[str, float]:
    """Seconds that the collectives of one forward take.

    Args:
        graph: one rank's, from `planner.tensor_parallel.shard.sharded`.
        workload: the sequences that all ranks compute together.
        rules: how the runtime cuts embedding, head and experts.
        num_ranks: ranks in the group.
        fabric: what connects their GPUs.

    Returns:
        Phase (`prefill`, `decode`) → seconds; 0 for a single rank.
    """
    return {
        phase: sum(_module_s(graph, workload, rules, num_ranks, fabric, phase)) if num_ranks > 1 else 0.0
        for phase in PHASES
    }


def _module_s(
    graph: ModuleGraph, workload: Workload, rules: CutRules, num_ranks: int, fabric: Fabric, phase: str
) -> Iterator[float]:
    for node in graph.nodes:
        if is_embedding(node, graph, num_ranks):
            if not is_embedding(node, graph):
                hidden = _tokens(workload, phase) * features(node)[1] * workload.itemsize_bytes
                yield all_reduce_s(hidden, num_ranks, fabric)
        elif is_head(node, graph, num_ranks):
            logits = _rows(node, graph, workload, phase) * graph.vocab_size * workload.itemsize_bytes
            if rules.head == "features":
                yield all_reduce_s(logits, num_ranks, fabric)
            elif rules.head == "rows":
                yield all_gather_s(logits, num_ranks, fabric)
        elif is_row(node):
            num_bytes = _rows(node, graph, workload, phase) * features(node)[1] * workload.itemsize_bytes
            if num_bytes:
                yield node.num_calls * all_reduce_s(num_bytes, num_ranks, fabric)


def _rows(node: Node, graph: ModuleGraph, workload: Workload, phase: str) -> float:
    """Rows of a module's output. They follow from its FLOPs, so that encoder and decoder need no distinction.

    Stacked experts sum their results on the rank, so that one row per token is sent.
    """
    if is_stack(node):
        return _tokens(workload, phase)
    cost = phase_cost(node, phase, workload)
    if cost is None:
        return 0.0
    flops = cost.flops(
        batch=workload.batch_size, prompt=workload.prompt_tokens, context=self_context(graph, workload, 1)
    )
    inputs, outputs = features(node)
    return flops / (2 * inputs * outputs)


def _tokens(workload: Workload, phase: str) -> int:
    return workload.batch_size * (workload.prompt_tokens if phase == "prefill" else 1)
