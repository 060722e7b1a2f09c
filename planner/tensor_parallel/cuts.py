"""How each module is cut: which dimension of its weight, and whether its activations are cut as well."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from planner.graph.schema import ModuleGraph, Node, Poly
from planner.tensor_parallel.rules import CutRules, Vocabulary

#: Modules whose weight has the shape (inputs, outputs).
_TRANSPOSED: Final = frozenset({"Conv1D", "Embedding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCut:
    """How one module is cut.

    Attributes:
        dim: dimension along which its weight is cut, or None.
        bias: whether its one-dimensional tensors are cut too.
        share: fraction of its weight and operations that one rank has.
        inside: whether its inputs or results are cut over the ranks as well.
    """

    dim: int | None = None
    bias: bool = False
    share: float = 1.0
    inside: bool = False


def cuts_of(graph: ModuleGraph, degree: int, rules: CutRules) -> dict[str, ModuleCut]:
    """How every module is cut.

    Args:
        graph: the whole model.
        degree: number of ranks, at least 2.
        rules: what the runtime does beyond the graph's roles.

    Returns:
        Module fqn → its cut, for every node of the graph.
    """
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
            result[node.name] = ModuleCut(dim=int(column == flipped), bias=column, share=share, inside=True)
            inside[node.block] = column
        else:
            within = inside.get(node.block, False) or _works_on_shares(node, below.get(node.name, ()))
            within = within and node.block is not None
            result[node.name] = ModuleCut(inside=within, share=1 / degree if within else 1.0)
    return result


def _vocabulary_cut(how: Vocabulary, degree: int) -> ModuleCut:
    if how == "whole":
        return ModuleCut()
    return ModuleCut(dim=1 if how == "features" else 0, bias=how == "rows", share=1 / degree)


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
    """Input and output features of the matrix that a module owns (of stacked experts, of the last one)."""
    outputs, inputs = [t.shape for t in node.tensors if len(t.shape) >= 2][-1][-2:]
    return (outputs, inputs) if node.class_name in _TRANSPOSED else (inputs, outputs)


def is_row(node: Node) -> bool:
    """Whether a module is row-parallel, so that an all-reduce must sum the ranks' results."""
    return node.tensor_parallel is not None and node.tensor_parallel.role == "row"


def is_stack(node: Node) -> bool:
    """Whether a module holds its experts' matrices in tensors of three dimensions."""
    return any(len(t.shape) == 3 for t in node.tensors)


def is_head(node: Node, graph: ModuleGraph, parts: int = 1) -> bool:
    """Whether a module computes logits.

    Args:
        node: the module.
        graph: the model that it belongs to.
        parts: ranks over which its rows may have been cut already; 1 asks for the whole vocabulary.
    """
    return node.block is None and _over(node, graph, parts) and "Embedding" not in node.class_name


def is_embedding(node: Node, graph: ModuleGraph, parts: int = 1) -> bool:
    """Whether a module is the token embedding.

    Args:
        node: the module.
        graph: the model that it belongs to.
        parts: ranks over which its rows may have been cut already; 1 asks for the whole vocabulary.
    """
    return node.block is None and _over(node, graph, parts) and "Embedding" in node.class_name


def _over(node: Node, graph: ModuleGraph, parts: int) -> bool:
    size = graph.vocab_size
    return size > 0 and any(len(t.shape) == 2 and t.shape[0] * parts >= size for t in node.tensors)
