"""One rank's graph: shapes, bytes, operations, cache and live activations of its share of the model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from planner.errors import InvalidInputError
from planner.graph.schema import ItemsizeCost, KvCost, ModuleGraph, Node, PhaseCost, Poly, Tensor
from planner.tensor_parallel.polynomials import lowest, scaled, shrunk
from planner.tensor_parallel.rules import Rules, Vocabulary

#: Modules that keep their weight as (inputs, outputs).
_TRANSPOSED = frozenset({"Conv1D", "Embedding"})
_MAX_DEGREE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What becomes of one module on a rank.

    Attributes:
        dim: dimension along which its weight is cut, or None.
        bias: whether a one-dimensional tensor is cut too.
        share: fraction of its weight and operations that the rank keeps.
        inside: whether its results, or what it works on, exist in shares.
    """

    dim: int | None = None
    bias: bool = False
    share: float = 1.0
    inside: bool = False


def degrees(graph: ModuleGraph) -> tuple[int, ...]:
    """Numbers of ranks, above one, over which every cut module divides; empty when nothing can be cut."""
    groups = {n.tensor_parallel.num_groups for n in graph.nodes if n.tensor_parallel is not None}
    most = min(_MAX_DEGREE, min(groups, default=0))
    return tuple(d for d in range(2, most + 1) if all(g % d == 0 for g in groups))


def refusal(graph: ModuleGraph, degree: int) -> str | None:
    """Why the model cannot be cut over so many ranks, as a clause; None when it can."""
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


def sharded(graph: ModuleGraph, degree: int, rules: Rules) -> ModuleGraph:
    """What one of `degree` ranks holds and computes.

    Products are divided exactly; what a block keeps alive is divided where it exceeds what its norms keep
    alive, since the residual stream and the masks are whole on every rank.

    Raises:
        InvalidInputError: the model does not divide so; the message has the degrees that work.
    """
    reason = refusal(graph, degree)
    if reason is not None:
        raise InvalidInputError(f"cannot cut the model: {reason}")
    if degree == 1:
        return graph
    graph = graph if rules.experts else _with_whole_experts(graph)
    cuts = _cuts(graph, degree, rules)
    bases = _bases(graph, cuts)
    nodes = tuple(
        _rank_node(n, cuts[n.name], bases.get(n.block or ""), degree, rules, graph) for n in graph.nodes
    )
    ties = tuple(group for group in graph.ties if _alike(group, cuts))
    return msgspec.structs.replace(graph, nodes=nodes, ties=ties)


def is_stack(node: Node) -> bool:
    """Whether a module holds its experts' matrices in tensors of three dimensions."""
    return any(len(t.shape) == 3 for t in node.tensors)


def _with_whole_experts(graph: ModuleGraph) -> ModuleGraph:
    nodes = tuple(
        msgspec.structs.replace(n, tensor_parallel=None) if n.tensor_parallel and is_stack(n) else n
        for n in graph.nodes
    )
    return msgspec.structs.replace(graph, nodes=nodes)


def is_head(node: Node, graph: ModuleGraph, parts: int = 1) -> bool:
    """Whether a module turns hidden states into logits, or its share of them into one of `parts`."""
    return node.block is None and _over(node, graph, parts) and "Embedding" not in node.class_name


def is_embedding(node: Node, graph: ModuleGraph, parts: int = 1) -> bool:
    """Whether a module looks tokens up, in a whole table or in one of `parts`."""
    return node.block is None and _over(node, graph, parts) and "Embedding" in node.class_name


def _over(node: Node, graph: ModuleGraph, parts: int) -> bool:
    size = graph.vocab_size
    return size > 0 and any(len(t.shape) == 2 and t.shape[0] * parts >= size for t in node.tensors)


def _cuts(graph: ModuleGraph, degree: int, rules: Rules) -> dict[str, Cut]:
    """Every module's cut, by fqn."""
    result = {}
    inside: dict[str | None, bool] = {}
    below = _descendants(graph)
    for node in sorted(graph.nodes, key=lambda n: n.order):
        role = node.tensor_parallel
        if is_head(node, graph):
            result[node.name] = _vocabulary_cut(rules.head, degree)
        elif is_embedding(node, graph):
            own = rules.embedding if node.name.rpartition(".")[2] == "embed_tokens" else "whole"
            result[node.name] = _vocabulary_cut(own, degree)
        elif role is not None:
            share = 1.0 - role.sharded + role.sharded / degree
            column = role.role == "column"
            flipped = node.class_name in _TRANSPOSED
            result[node.name] = Cut(dim=int(column == flipped), bias=column, share=share, inside=True)
            inside[node.block] = column
        else:
            within = inside.get(node.block, False) or _works_on_shares(node, below.get(node.name, ()))
            within = within and node.block is not None
            result[node.name] = Cut(inside=within, share=1 / degree if within else 1.0)
    return result


def _vocabulary_cut(how: Vocabulary, degree: int) -> Cut:
    if how == "whole":
        return Cut()
    return Cut(dim=1 if how == "features" else 0, bias=how == "rows", share=1 / degree)


def _descendants(graph: ModuleGraph) -> dict[str, list[Node]]:
    """Modules with a role, by the fqn of each module above them."""
    result: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.tensor_parallel is None:
            continue
        parts = node.name.split(".")
        for depth in range(1, len(parts)):
            result.setdefault(".".join(parts[:depth]), []).append(node)
    return result


def _works_on_shares(node: Node, children: Iterable[Node]) -> bool:
    """Whether a container's own operations run between its column-parallel and its row-parallel children.

    An attention does: it multiplies, or keeps a cache. An MLP does when what it touches per token is as wide
    as its inner features (`up * act(gate)`), and not when that is the residual stream.
    """
    rows = [c for c in children if c.tensor_parallel is not None and c.tensor_parallel.role == "row"]
    if not rows or len(rows) > 1:
        return False
    cost = node.costs.get("2")
    if node.kv is not None or (cost is not None and cost.prefill.flops != Poly()):
        return True
    inner, outer = features(rows[0])
    return cost is not None and inner > outer and cost.decode.moved_bytes.b >= 2 * 2 * inner


def features(node: Node) -> tuple[int, int]:
    """Inputs and outputs of a module that owns a matrix, on this rank; of each expert's last one."""
    outputs, inputs = [t.shape for t in node.tensors if len(t.shape) >= 2][-1][-2:]
    return (outputs, inputs) if node.class_name in _TRANSPOSED else (inputs, outputs)


def _bases(graph: ModuleGraph, cuts: Mapping[str, Cut]) -> dict[str, dict[str, tuple[Poly, Poly]]]:
    """Block → itemsize → what its whole modules (its norms) keep alive in prefill and in decode."""
    whole: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.block is not None and node.tensors and not cuts[node.name].inside:
            whole.setdefault(node.block, []).append(node)
    return {
        block: {
            size: (
                lowest(p for n in nodes for p in n.costs[size].prefill.peak_bytes),
                lowest(p for n in nodes for p in n.costs[size].decode.peak_bytes),
            )
            for size in nodes[0].costs
            if all(size in n.costs for n in nodes)
        }
        for block, nodes in whole.items()
    }


def _rank_node(
    node: Node,
    cut: Cut,
    base: dict[str, tuple[Poly, Poly]] | None,
    degree: int,
    rules: Rules,
    graph: ModuleGraph,
) -> Node:
    extra = rules.row_parallel_ops if is_row(node) or (is_head(node, graph) and cut.dim == 1) else 0
    costs = {}
    for size, cost in node.costs.items():
        prefill, decode = (base or {}).get(size, (None, None))
        costs[size] = ItemsizeCost(
            prefill=_phase(cost.prefill, node, cut, prefill, degree, extra),
            decode=_phase(cost.decode, node, cut, decode, degree, extra),
        )
    return msgspec.structs.replace(
        node,
        tensors=tuple(_rank_tensor(t, node, cut, degree) for t in node.tensors),
        costs=costs,
        kv=_rank_kv(node, degree, graph),
    )


def is_row(node: Node) -> bool:
    """Whether a module holds some of a weight's inputs, so that the ranks' results must be summed."""
    return node.tensor_parallel is not None and node.tensor_parallel.role == "row"


def _rank_tensor(tensor: Tensor, node: Node, cut: Cut, degree: int) -> Tensor:
    """A matrix loses rows or columns, a bias entries; a rank's part is never less than its even share."""
    if cut.dim is None or tensor.kind != "parameter":
        return tensor
    if len(tensor.shape) == 1 and not cut.bias:
        return tensor
    dim = _dim(tensor, node, cut)
    extent = -(-round(tensor.shape[dim] * cut.share * degree) // degree)
    return msgspec.structs.replace(
        tensor, shape=tuple(extent if i == dim else n for i, n in enumerate(tensor.shape))
    )


def _dim(tensor: Tensor, node: Node, cut: Cut) -> int:
    """Experts are cut along the inputs of the matrix that ends them, and along the outputs of the others."""
    if len(tensor.shape) == 3:
        return 2 if tensor is node.tensors[-1] else 1
    return 0 if len(tensor.shape) == 1 or cut.dim is None else cut.dim


def _phase(cost: PhaseCost, node: Node, cut: Cut, base: Poly | None, degree: int, extra: int) -> PhaseCost:
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


def _moved_share(node: Node, cut: Cut) -> float:
    """Inputs of a column-parallel Linear and outputs of a row-parallel one are whole."""
    if cut.dim is None:
        return cut.share
    if "Embedding" in node.class_name:
        return 1.0
    inputs, outputs = features(node)
    if is_row(node) or (cut.dim == 1 and node.tensor_parallel is None):
        return (inputs * cut.share + outputs) / (inputs + outputs)
    return (inputs + outputs * cut.share) / (inputs + outputs)


def _rank_kv(node: Node, degree: int, graph: ModuleGraph) -> KvCost | None:
    """A cache follows the keys and values: divided with them, whole where they are on every rank."""
    if node.kv is None:
        return None
    linears = [
        n
        for n in graph.nodes
        if n.name.startswith(f"{node.name}.") and any(len(t.shape) == 2 for t in n.tensors)
    ]
    columns = [n for n in linears if n.tensor_parallel is not None and n.tensor_parallel.role == "column"]
    replicated = any(n.tensor_parallel is None and "Embedding" not in n.class_name for n in linears)
    if not columns or replicated or any(n.tensor_parallel.sharded < 1 for n in columns if n.tensor_parallel):
        return node.kv
    return msgspec.structs.replace(
        node.kv,
        per_sequence=node.kv.per_sequence / degree,
        per_token=node.kv.per_token / degree,
        per_prompt_token=node.kv.per_prompt_token / degree,
    )


def _alike(group: tuple[str, ...], cuts: Mapping[str, Cut]) -> bool:
    """Tied tensors stay one only if all their owners are cut alike."""
    return len({cuts[fqn.rpartition(".")[0]].dim for fqn in group}) == 1
