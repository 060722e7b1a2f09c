"""One rank's graph: shapes, bytes, operations, cache and live activations of its part of the model."""

from collections.abc import Mapping, Sequence

import msgspec

from planner.errors import InvalidInputError
from planner.graph.schema import ItemsizeCost, KvCost, ModuleGraph, Node, PhaseCost, Poly, Tensor
from planner.tensor_parallel.cuts import ModuleCut, cuts_of, features, is_head, is_row, is_stack
from planner.tensor_parallel.polynomials import lowest, scaled, shrunk
from planner.tensor_parallel.rules import CutRules

_MAX_DEGREE = 1024


def degrees(graph: ModuleGraph) -> tuple[int, ...]:
    """Numbers of ranks above one that divide the groups of every cut module; empty when none is cut."""
    groups = {n.tensor_parallel.num_groups for n in graph.nodes if n.tensor_parallel is not None}
    most = min(_MAX_DEGREE, min(groups, default=0))
    return tuple(d for d in range(2, most + 1) if all(g % d == 0 for g in groups))


def refusal(graph: ModuleGraph, degree: int) -> str | None:
    """Why the model cannot be cut over `degree` ranks, as a clause; None when it can."""
    possible = degrees(graph)
    if degree == 1 or degree in possible:
        return None
    if not any(n.tensor_parallel is not None for n in graph.nodes):
        return f"no weight of {graph.model_class} is known to be cuttable over ranks"
    groups, name = min((n.tensor_parallel.num_groups, n.name) for n in graph.nodes if n.tensor_parallel)
    words = f"the {groups} groups of heads or features of {name} do not divide over {degree} ranks"
    return (
        f"{words}; {', '.join(map(str, possible[:6]))} work" if possible else f"{words}, nor over any other"
    )


def sharded(graph: ModuleGraph, degree: int, rules: CutRules) -> ModuleGraph:
    """What one of `degree` ranks holds and computes.

    Matrix products are divided exactly. Live activations of a block are divided only where they exceed
    those of its norms, because every rank has the whole residual stream and the whole masks.

    Args:
        graph: the whole model.
        degree: number of ranks; 1 returns the graph as it is.
        rules: what the runtime does beyond the graph's roles.

    Raises:
        InvalidInputError: the model cannot be cut over so many ranks; the message names degrees that work.
    """
    reason = refusal(graph, degree)
    if reason is not None:
        raise InvalidInputError(f"cannot cut the model: {reason}")
    if degree == 1:
        return graph
    graph = graph if rules.experts else _with_whole_experts(graph)
    cuts = cuts_of(graph, degree, rules)
    bases = _bases(graph, cuts)
    # Equal layers share one costs object: each kind is computed once.
    costs_of_kind: dict[tuple[object, ...], dict[str, ItemsizeCost]] = {}
    caches = _divided_caches(graph)
    nodes = []
    for node in graph.nodes:
        cut, base = cuts[node.name], bases.get(node.block or "", {})
        extra = rules.row_parallel_ops if _sums(node, graph, cut) else 0
        key = (id(node.costs), cut, id(base), extra, node.tensors)
        if key not in costs_of_kind:
            costs_of_kind[key] = _rank_costs(node, cut, base, degree, extra)
        divided = degree if node.name in caches else 1
        nodes.append(_rank_node(node, cut, degree, costs_of_kind[key], divided))
    ties = tuple(group for group in graph.ties if _alike(group, cuts))
    return msgspec.structs.replace(graph, nodes=tuple(nodes), ties=ties)


def _with_whole_experts(graph: ModuleGraph) -> ModuleGraph:
    nodes = tuple(
        msgspec.structs.replace(n, tensor_parallel=None) if n.tensor_parallel and is_stack(n) else n
        for n in graph.nodes
    )
    return msgspec.structs.replace(graph, nodes=nodes)


#: Itemsize → live bytes in prefill and in decode.
_Base = dict[str, tuple[Poly, Poly]]


def _bases(graph: ModuleGraph, cuts: Mapping[str, ModuleCut]) -> dict[str, _Base]:
    """Block → live bytes of its modules that are not cut (its norms); equal blocks share one object."""
    whole: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.block is not None and node.tensors and not cuts[node.name].inside:
            whole.setdefault(node.block, []).append(node)
    base_of_costs: dict[tuple[int, ...], _Base] = {}
    result = {}
    for block, nodes in whole.items():
        key = tuple(id(n.costs) for n in nodes)
        if key not in base_of_costs:
            base_of_costs[key] = _base(nodes)
        result[block] = base_of_costs[key]
    return result


def _base(nodes: Sequence[Node]) -> _Base:
    return {
        size: (
            lowest(p for n in nodes for p in n.costs[size].prefill.peak_bytes),
            lowest(p for n in nodes for p in n.costs[size].decode.peak_bytes),
        )
        for size in nodes[0].costs
        if all(size in n.costs for n in nodes)
    }


def _sums(node: Node, graph: ModuleGraph, cut: ModuleCut) -> bool:
    """Whether an all-reduce sums the ranks' results of a module."""
    return is_row(node) or (is_head(node, graph) and cut.dim == 1)


def _rank_costs(node: Node, cut: ModuleCut, base: _Base, degree: int, extra: int) -> dict[str, ItemsizeCost]:
    costs = {}
    for size, cost in node.costs.items():
        prefill, decode = base.get(size, (None, None))
        costs[size] = ItemsizeCost(
            prefill=_phase(cost.prefill, node, cut, prefill, degree, extra),
            decode=_phase(cost.decode, node, cut, decode, degree, extra),
        )
    return costs


def _rank_node(
    node: Node, cut: ModuleCut, degree: int, costs: dict[str, ItemsizeCost], cache_parts: int
) -> Node:
    return msgspec.structs.replace(
        node,
        tensors=tuple(_rank_tensor(t, node, cut, degree) for t in node.tensors),
        costs=costs,
        kv=_rank_kv(node.kv, cache_parts),
    )


def _rank_tensor(tensor: Tensor, node: Node, cut: ModuleCut, degree: int) -> Tensor:
    """One rank's part of a matrix or bias, rounded up to a whole number of rows, columns or entries."""
    if cut.dim is None or tensor.kind != "parameter":
        return tensor
    if len(tensor.shape) == 1 and not cut.bias:
        return tensor
    dim = _dim(tensor, node, cut)
    extent = -(-round(tensor.shape[dim] * cut.share * degree) // degree)
    return msgspec.structs.replace(
        tensor, shape=tuple(extent if i == dim else n for i, n in enumerate(tensor.shape))
    )


def _dim(tensor: Tensor, node: Node, cut: ModuleCut) -> int:
    """The dimension to cut: of stacked experts the inputs of the last matrix, else the outputs."""
    if len(tensor.shape) == 3:
        return 2 if tensor is node.tensors[-1] else 1
    return 0 if len(tensor.shape) == 1 or cut.dim is None else cut.dim


def _phase(
    cost: PhaseCost, node: Node, cut: ModuleCut, base: Poly | None, degree: int, extra: int
) -> PhaseCost:
    if cut.share == 1.0 and not cut.inside:
        return cost
    peaks = cost.peak_bytes
    if cut.inside and base is not None:
        peaks = tuple(shrunk(peak, base, degree) for peak in peaks)
    return msgspec.structs.replace(
        cost,
        num_ops=cost.num_ops + extra if cost.num_ops else 0,
        flops=scaled(cost.flops, cut.share),
        moved_bytes=scaled(cost.moved_bytes, _moved_share(node, cut)),
        peak_bytes=peaks,
    )


def _moved_share(node: Node, cut: ModuleCut) -> float:
    """Fraction of the moved bytes: column-parallel Linears read, row-parallel ones write whole rows."""
    if cut.dim is None:
        return cut.share
    if "Embedding" in node.class_name:
        return 1.0
    inputs, outputs = features(node)
    if is_row(node) or (cut.dim == 1 and node.tensor_parallel is None):
        return (inputs * cut.share + outputs) / (inputs + outputs)
    return (inputs + outputs * cut.share) / (inputs + outputs)


def _divided_caches(graph: ModuleGraph) -> set[str]:
    """Modules whose cache is divided, because the weights of its keys and values are."""
    above: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if any(len(t.shape) == 2 for t in node.tensors) and "Embedding" not in node.class_name:
            parts = node.name.split(".")
            for depth in range(1, len(parts)):
                above.setdefault(".".join(parts[:depth]), []).append(node)
    return {node.name for node in graph.nodes if node.kv is not None and _all_cut(above.get(node.name, []))}


def _all_cut(linears: Sequence[Node]) -> bool:
    """Whether no part of an attention's Linears is replicated; else every rank has all keys and values."""
    return bool(linears) and all(n.tensor_parallel and n.tensor_parallel.sharded == 1.0 for n in linears)


def _rank_kv(kv: KvCost | None, parts: int) -> KvCost | None:
    if kv is None or parts == 1:
        return kv
    return msgspec.structs.replace(
        kv,
        per_sequence=kv.per_sequence / parts,
        per_token=kv.per_token / parts,
        per_prompt_token=kv.per_prompt_token / parts,
    )


def _alike(group: tuple[str, ...], cuts: Mapping[str, ModuleCut]) -> bool:
    """Whether all owners of tied tensors are cut alike; only then does the rank keep one tensor."""
    return len({cuts[fqn.rpartition(".")[0]].dim for fqn in group}) == 1
