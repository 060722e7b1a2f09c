"""One rank's graph against arithmetic done by hand."""

import msgspec
import pytest

from planner.errors import InvalidInputError
from planner.graph.schema import (
    SCHEMA_VERSION,
    ItemsizeCost,
    KvCost,
    ModuleGraph,
    ModuleRole,
    Node,
    PhaseCost,
    Poly,
    Tensor,
)
from planner.models.resolve import resolve
from planner.tensor_parallel.fused import fused
from planner.tensor_parallel.rules import DEEPSPEED_TP, KERNEL_INJECTION, TRANSFORMERS_TP
from planner.tensor_parallel.shard import degrees, refusal, sharded
from planner.tracing.store import graph_for

HIDDEN, INNER, HEADS, VOCABULARY = 64, 256, 8, 1000


def _cost(
    num_ops: int, *, flops: float = 0.0, moved: float = 0.0, peak: float = 0.0
) -> dict[str, ItemsizeCost]:
    cost = ItemsizeCost(
        prefill=PhaseCost(
            num_ops=num_ops, flops=Poly(bp=flops), moved_bytes=Poly(bp=moved), peak_bytes=(Poly(bp=peak),)
        ),
        decode=PhaseCost(
            num_ops=num_ops, flops=Poly(b=flops), moved_bytes=Poly(b=moved), peak_bytes=(Poly(b=peak),)
        ),
    )
    return {"2": cost}


def _linear(name: str, rows: int, columns: int, order: int, role: ModuleRole | None, peak: float) -> Node:
    return Node(
        name=name,
        class_name="Linear",
        order=order,
        block="layers.0",
        tensors=(Tensor(name="weight", shape=(rows, columns)), Tensor(name="bias", shape=(rows,))),
        costs=_cost(1, flops=2.0 * rows * columns, moved=2.0 * (rows + columns), peak=peak),
        tensor_parallel=role,
    )


def _norm(name: str, order: int) -> Node:
    return Node(
        name=name,
        class_name="LayerNorm",
        order=order,
        block="layers.0",
        tensors=(Tensor(name="weight", shape=(HIDDEN,)),),
        costs=_cost(1, moved=4.0 * HIDDEN, peak=6.0 * HIDDEN),
    )


def _plain(name: str, order: int, **cost: float) -> Node:
    return Node(name=name, class_name="Module", order=order, block="layers.0", costs=_cost(3, **cost))


def _graph() -> ModuleGraph:
    """One block, an embedding and a head tied to it; queries, keys and values come from one Linear."""
    column, row = (ModuleRole(role=role, num_groups=HEADS) for role in ("column", "row"))
    inner_column, inner_row = (ModuleRole(role=role, num_groups=INNER) for role in ("column", "row"))
    attention = msgspec.structs.replace(
        _plain("layers.0.attention", 2, flops=8.0 * HIDDEN, moved=10.0 * HIDDEN, peak=10.0 * HIDDEN),
        kv=KvCost(per_token=4.0 * HIDDEN),
    )
    nodes = (
        Node(
            name="embed_tokens",
            class_name="Embedding",
            order=0,
            tensors=(Tensor(name="weight", shape=(VOCABULARY, HIDDEN)),),
            costs=_cost(1, moved=4.0 * HIDDEN),
        ),
        _norm("layers.0.norm", 1),
        attention,
        _linear("layers.0.attention.qkv", 3 * HIDDEN, HIDDEN, 3, column, 14.0 * HIDDEN),
        _linear("layers.0.attention.out", HIDDEN, HIDDEN, 4, row, 8.0 * HIDDEN),
        _norm("layers.0.norm_2", 5),
        _plain("layers.0.mlp", 6, moved=6.0 * HIDDEN, peak=6.0 * HIDDEN),
        _linear("layers.0.mlp.up", INNER, HIDDEN, 7, inner_column, 6.0 * HIDDEN + 2.0 * INNER),
        _plain("layers.0.mlp.act", 8, moved=12.0 * INNER, peak=6.0 * HIDDEN + 4.0 * INNER),
        _linear("layers.0.mlp.down", HIDDEN, INNER, 9, inner_row, 6.0 * HIDDEN + 2.0 * INNER),
        Node(
            name="head",
            class_name="Linear",
            order=10,
            tensors=(Tensor(name="weight", shape=(VOCABULARY, HIDDEN)),),
            costs=_cost(1, flops=2.0 * VOCABULARY * HIDDEN, moved=2.0 * (VOCABULARY + HIDDEN)),
        ),
    )
    return ModuleGraph(
        schema_version=SCHEMA_VERSION,
        model_class="Small",
        model_type="small",
        config_sha256="0" * 64,
        versions={},
        nodes=nodes,
        edges=(),
        blocks=("layers.0",),
        ties=(("embed_tokens.weight", "head.weight"),),
        vocab_size=VOCABULARY,
    )


def _node(graph: ModuleGraph, name: str) -> Node:
    return next(node for node in graph.nodes if node.name == name)


def _shapes(graph: ModuleGraph, name: str) -> list[tuple[int, ...]]:
    return [tensor.shape for tensor in _node(graph, name).tensors]


def test_columns_lose_rows_and_bias_rows_lose_columns_and_keep_theirs() -> None:
    rank = sharded(_graph(), 4, DEEPSPEED_TP)
    assert _shapes(rank, "layers.0.attention.qkv") == [(48, 64), (48,)]
    assert _shapes(rank, "layers.0.attention.out") == [(64, 16), (64,)]
    assert _shapes(rank, "layers.0.mlp.down") == [(64, 64), (64,)]
    assert _shapes(rank, "layers.0.norm") == [(64,)]


def test_a_transposed_weight_is_cut_along_its_other_dimension() -> None:
    graph = _graph()
    nodes = tuple(
        msgspec.structs.replace(
            n, class_name="Conv1D", tensors=(Tensor(name="weight", shape=n.tensors[0].shape[::-1]),)
        )
        if n.tensor_parallel
        else n
        for n in graph.nodes
    )
    rank = sharded(msgspec.structs.replace(graph, nodes=nodes), 4, DEEPSPEED_TP)
    assert _shapes(rank, "layers.0.attention.qkv") == [(64, 48)]
    assert _shapes(rank, "layers.0.attention.out") == [(16, 64)]


def test_what_is_cut_in_part_keeps_the_rest() -> None:
    # Multi-query: 64 rows of queries are cut, 2 · 8 of keys and values are not. 64/80 of the weight.
    graph = _graph()
    partly = ModuleRole(role="column", num_groups=HEADS, sharded=0.8)
    nodes = tuple(
        msgspec.structs.replace(n, tensors=(Tensor(name="weight", shape=(80, 64)),), tensor_parallel=partly)
        if n.name.endswith("qkv")
        else n
        for n in graph.nodes
    )
    rank = sharded(msgspec.structs.replace(graph, nodes=nodes), 4, DEEPSPEED_TP)
    assert _shapes(rank, "layers.0.attention.qkv") == [(32, 64)]
    assert _node(rank, "layers.0.attention").kv == KvCost(per_token=4.0 * HIDDEN)


def test_operations_cache_and_traffic_of_a_rank() -> None:
    rank = sharded(_graph(), 4, DEEPSPEED_TP)
    attention = _node(rank, "layers.0.attention")
    assert attention.kv == KvCost(per_token=HIDDEN)
    assert attention.costs["2"].prefill.flops == Poly(bp=2.0 * HIDDEN)
    out = _node(rank, "layers.0.attention.out").costs["2"].decode
    assert out.flops == Poly(b=2.0 * HIDDEN * HIDDEN / 4)
    # A quarter of the inputs, and all outputs.
    assert out.moved_bytes == Poly(b=2.0 * (HIDDEN / 4 + HIDDEN))
    up = _node(rank, "layers.0.mlp.up").costs["2"].decode
    assert up.moved_bytes == Poly(b=2.0 * (HIDDEN + INNER / 4))
    assert _node(rank, "layers.0.mlp.act").costs["2"].decode.moved_bytes == Poly(b=12.0 * INNER / 4)
    # What an MLP adds to the residual stream is whole: it is no wider than that.
    assert _node(rank, "layers.0.mlp").costs["2"].decode.moved_bytes == Poly(b=6.0 * HIDDEN)
    assert [_node(rank, f"layers.0.mlp.{n}").costs["2"].decode.num_ops for n in ("up", "act", "down")] == [
        1,
        3,
        3,
    ]


def test_what_exceeds_the_norms_peak_is_divided() -> None:
    rank = sharded(_graph(), 4, DEEPSPEED_TP)
    # The norms keep 6 · HIDDEN alive; the activation function 4 · INNER more, which exist in shares.
    expected = 6.0 * HIDDEN + 4.0 * INNER / 4
    assert _node(rank, "layers.0.mlp.act").costs["2"].prefill.peak_bytes == (Poly(bp=expected),)
    assert _node(rank, "layers.0.norm").costs["2"].prefill.peak_bytes == (Poly(bp=6.0 * HIDDEN),)


def test_the_vocabulary_is_cut_as_each_runtime_does() -> None:
    graph = _graph()
    deepspeed = sharded(graph, 4, DEEPSPEED_TP)
    assert _shapes(deepspeed, "head") == [(VOCABULARY, 16)]
    assert _shapes(deepspeed, "embed_tokens") == [(VOCABULARY, HIDDEN)]
    assert deepspeed.ties == ()  # Cut and whole are two tensors.
    native = sharded(graph, 4, TRANSFORMERS_TP)
    assert _shapes(native, "head") == _shapes(native, "embed_tokens") == [(250, HIDDEN)]
    assert native.ties == graph.ties
    assert _shapes(sharded(graph, 4, KERNEL_INJECTION), "head") == [(VOCABULARY, HIDDEN)]


def test_stacked_experts_are_cut_by_transformers_and_whole_elsewhere() -> None:
    graph = graph_for(resolve("mixtral-8x7b"))
    name = "model.layers.0.mlp.experts"
    assert _shapes(sharded(graph, 8, DEEPSPEED_TP), name) == [(8, 28672, 4096), (8, 4096, 14336)]
    assert _shapes(sharded(graph, 8, TRANSFORMERS_TP), name) == [(8, 3584, 4096), (8, 4096, 1792)]


def test_degrees_divide_every_number_of_groups() -> None:
    graph = _graph()
    assert degrees(graph) == (2, 4, 8)
    assert refusal(graph, 4) is None
    assert refusal(graph, 1) is None
    with pytest.raises(
        InvalidInputError, match=r"8 groups .* layers.0.attention.out .* 3 ranks; 2, 4, 8 work"
    ):
        sharded(graph, 3, DEEPSPEED_TP)


def test_a_model_without_roles_is_not_cut() -> None:
    graph = _graph()
    bare = tuple(msgspec.structs.replace(n, tensor_parallel=None) for n in graph.nodes)
    reason = refusal(msgspec.structs.replace(graph, nodes=bare), 2)
    assert reason == "no weight of Small is known to be cuttable over ranks"


def test_one_rank_is_the_whole_model() -> None:
    assert sharded(_graph(), 1, DEEPSPEED_TP) == _graph()


def test_fused_blocks_issue_few_operations() -> None:
    # Four products, three operations of the attention, two besides: norms and activation ride along.
    block = fused(_graph(), KERNEL_INJECTION)
    inside = [n for n in block.nodes if n.block is not None]
    assert sum(n.costs["2"].decode.num_ops for n in inside) == 9
    assert _node(block, "head").costs["2"].decode.num_ops == 1
    # The activation function reads and writes its features once, at two bytes.
    assert _node(block, "layers.0.mlp.act").costs["2"].decode.moved_bytes.b == 2 * 2 * INNER
    # The cache lies in the workspace: what the time model adds for an append by copy is taken off again.
    assert _node(block, "layers.0.attention").costs["2"].decode.moved_bytes.bc == -2 * 4.0 * HIDDEN


def test_blooms_fused_attention_is_torch() -> None:
    bloom = msgspec.structs.replace(_graph(), model_type="bloom")
    inside = [n for n in fused(bloom, KERNEL_INJECTION).nodes if n.block is not None]
    assert sum(n.costs["2"].decode.num_ops for n in inside) == 17
    assert _node(fused(bloom, KERNEL_INJECTION), "layers.0.attention").costs["2"].decode.moved_bytes.bc == 0
