"""The summary of a hand-built graph: two equal blocks, one other, a tied head."""

from planner.graph.schema import (
    SCHEMA_VERSION,
    ItemsizeCost,
    KvCost,
    ModuleGraph,
    Node,
    PhaseCost,
    Poly,
    Tensor,
)
from planner.graph.summary import summarise


def _costs(flops: Poly) -> dict[str, ItemsizeCost]:
    cost = ItemsizeCost(prefill=PhaseCost(num_ops=1), decode=PhaseCost(num_ops=1, flops=flops))
    return {"2": cost, "4": cost}


def _block(index: int, *, width: int) -> tuple[Node, ...]:
    name = f"h.{index}"
    return (
        Node(name=name, class_name="Block", order=10 * index + 1, block=name, costs=_costs(Poly(b=1.0))),
        Node(
            name=f"{name}.attn",
            class_name="Linear",
            order=10 * index + 2,
            block=name,
            tensors=(
                Tensor(name="weight", shape=(width, 4)),
                Tensor(name="mask", shape=(9,), kind="buffer"),
            ),
            costs=_costs(Poly(bc=2.0)),
            kv=KvCost(per_token=16.0, window=8),
        ),
    )


def _graph() -> ModuleGraph:
    wte = Node(name="wte", class_name="Embedding", order=0, tensors=(Tensor(name="weight", shape=(10, 4)),))
    head = Node(name="head", class_name="Linear", order=99, tensors=(Tensor(name="weight", shape=(10, 4)),))
    return ModuleGraph(
        schema_version=SCHEMA_VERSION,
        model_class="Toy",
        model_type="toy",
        config_sha256="",
        versions={"torch": "2"},
        nodes=(wte, *_block(0, width=4), *_block(1, width=4), *_block(2, width=8), head),
        edges=(),
        blocks=("h.0", "h.1", "h.2"),
        ties=(("wte.weight", "head.weight"),),
    )


def test_equal_blocks_are_one_kind() -> None:
    first, second = summarise(_graph()).block_kinds
    assert first.fqns == ("h.0", "h.1")
    assert second.fqns == ("h.2",)
    assert first.class_name == "Block"
    assert (first.num_parameters, second.num_parameters) == (16, 32)


def test_costs_of_one_block() -> None:
    kind = summarise(_graph()).block_kinds[0]
    assert kind.kv_bytes_per_token == 16
    assert kind.kv_window == 8
    # One sequence, context 1,025: 1 in the block itself and 2 · 1,025 in its attention.
    assert kind.decode_flops == 2051


def test_whole_model() -> None:
    summary = summarise(_graph())
    assert summary.num_parameters == 40 + 16 + 16 + 32
    assert summary.kv_bytes_per_token == 48
    assert summary.num_modules == 8


def test_a_tied_tensor_counts_once() -> None:
    outside = {part.fqn: part.num_parameters for part in summarise(_graph()).outside}
    assert outside == {"wte": 40, "head": 0}
