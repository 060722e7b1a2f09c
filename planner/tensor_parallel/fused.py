"""Runtimes with fused blocks: how many kernels the host launches, and which bytes they move."""

import msgspec

from planner.cost.time_terms import APPENDING_PASSES
from planner.graph.schema import ItemsizeCost, ModuleGraph, Node, PhaseCost, Poly
from planner.tensor_parallel.cuts import features, is_row
from planner.tensor_parallel.rules import CutRules, FusedBlock


def fused(graph: ModuleGraph, rules: CutRules) -> ModuleGraph:
    """The graph with the costs of the runtime's fused blocks.

    A matrix product stays one operation, and norms and biases are fused into it. An activation function is
    one kernel that reads and writes the inner features once. Weights, cache and live bytes do not change.

    Args:
        graph: one rank's.
        rules: the runtime's; without fused blocks the graph stays as it is.
    """
    block = rules.block(graph.model_type)
    if block is None:
        return graph
    inner = _inner_features(graph)
    counted: set[str] = set()
    nodes = []
    for node in graph.nodes:
        if node.block is None:
            nodes.append(node)
            continue
        num_ops = _num_ops(node, block)
        if num_ops is None:
            num_ops = 0 if node.block in counted else block.other_ops
            counted.add(node.block)
        nodes.append(_replaced(node, num_ops, inner.get(node.block, 0), in_place=block.cache_in_place))
    return msgspec.structs.replace(graph, nodes=tuple(nodes))


def _num_ops(node: Node, block: FusedBlock) -> int | None:
    """Operations of a module inside the fused block; None where they are part of the block's `other_ops`."""
    if node.kv is not None:
        return block.attention_ops
    if any(len(t.shape) >= 2 for t in node.tensors):
        return 1
    return 0 if node.tensors else None


def _inner_features(graph: ModuleGraph) -> dict[str, int]:
    """Block → inputs of its widest row-parallel product."""
    result: dict[str, int] = {}
    for node in graph.nodes:
        if node.block is not None and is_row(node):
            result[node.block] = max(result.get(node.block, 0), features(node)[0])
    return result


def _replaced(node: Node, num_ops: int, inner: int, *, in_place: bool) -> Node:
    elementwise = not node.tensors and node.kv is None
    # What the time model adds for a cache that is copied to append to it.
    copied = APPENDING_PASSES * node.kv.per_token / 2 if in_place and node.kv is not None else 0.0

    def phase(cost: PhaseCost, itemsize_bytes: int) -> PhaseCost:
        if not cost.num_ops:
            return cost
        moved = _capped(cost.moved_bytes, 2.0 * inner * itemsize_bytes) if elementwise else cost.moved_bytes
        return msgspec.structs.replace(cost, num_ops=num_ops, moved_bytes=moved)

    costs = {}
    for size, cost in node.costs.items():
        decode = phase(cost.decode, int(size))
        moved = msgspec.structs.replace(decode.moved_bytes, bc=decode.moved_bytes.bc - copied * int(size))
        costs[size] = ItemsizeCost(
            prefill=phase(cost.prefill, int(size)), decode=msgspec.structs.replace(decode, moved_bytes=moved)
        )
    return msgspec.structs.replace(node, costs=costs)


def _capped(poly: Poly, per_token: float) -> Poly:
    """`poly` with at most `per_token` bytes for each token of the batch."""
    return msgspec.structs.replace(poly, b=min(poly.b, per_token), bp=min(poly.bp, per_token))
