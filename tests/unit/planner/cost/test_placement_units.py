"""Units, leaves and entries of a chain."""

from fixtures.graphs import layered_graph
from planner.cost.placement_units import chain_of
from planner.graph.groups import placement_units
from planner.graph.schema import SCHEMA_VERSION, ModuleGraph, Node, Tensor


def test_blocks_are_units_of_one_structure() -> None:
    graph = layered_graph(5)
    units = chain_of(graph, placement_units(graph)).units
    assert [u.name for u in units] == ["embed", *(f"layers.{i}" for i in range(5)), "head"]
    assert len({u.key for u in units[1:6]}) == 1
    assert all(u.is_block for u in units[1:6])
    assert [leaf.entries for leaf in units[1].leaves] == [
        ("layers.0.attention",),
        ("layers.0.up",),
        ("layers.0.down",),
    ]


def test_a_tie_joins_both_ends_in_one_leaf_counted_once() -> None:
    graph = layered_graph(2, tied=True)
    units = chain_of(graph, placement_units(graph)).units
    tied = next(u for u in units if u.name == "embed")
    assert not tied.is_chain
    (leaf,) = tied.leaves
    assert leaf.entries == ("embed", "head")
    assert leaf.stored_bytes(2) == 256 * 64 * 2


def _graph(*nodes: Node, blocks: tuple[str, ...]) -> ModuleGraph:
    return ModuleGraph(
        schema_version=SCHEMA_VERSION,
        model_class="Test",
        model_type="test",
        config_sha256="0",
        versions={},
        nodes=nodes,
        edges=(),
        blocks=blocks,
    )


def test_a_container_with_buffers_is_one_entry_with_its_parts() -> None:
    weight = (Tensor(name="weight", shape=(4, 4)),)
    graph = _graph(
        Node(
            name="model", class_name="M", order=0, tensors=(Tensor(name="mask", shape=(4,), kind="scratch"),)
        ),
        Node(
            name="model.h.0.attn",
            class_name="A",
            order=1,
            block="model.h.0",
            tensors=(Tensor(name="bias", shape=(4,), kind="scratch", dtype="bool"),),
        ),
        Node(name="model.h.0.attn.q", class_name="L", order=2, block="model.h.0", tensors=weight),
        Node(name="model.h.0.mlp", class_name="L", order=3, block="model.h.0", tensors=weight),
        blocks=("model.h.0",),
    )
    units = chain_of(graph, placement_units(graph)).units
    block = next(u for u in units if u.is_block)
    assert [leaf.entries for leaf in block.leaves] == [("model.h.0.attn",), ("model.h.0.mlp",)]
    # Above the blocks, scratch buffers make no entry: it would cover every block.
    above = next(u for u in units if not u.is_block)
    assert [leaf.entries for leaf in above.leaves] == [()]


def test_modules_that_share_an_entry_are_one_unit() -> None:
    """BERT's head owns a bias above its own children: one line of the map, so one place."""
    weight = (Tensor(name="weight", shape=(4, 4)),)
    graph = _graph(
        Node(name="h.0", class_name="B", order=0, block="h.0", tensors=weight),
        Node(name="cls", class_name="C", order=1, tensors=(Tensor(name="bias", shape=(4,)),)),
        Node(name="cls.dense", class_name="L", order=2, tensors=weight),
        blocks=("h.0",),
    )
    chain = chain_of(graph, placement_units(graph))
    assert [[leaf.entries for leaf in unit.leaves] for unit in chain.units] == [[("h.0",)], [("cls",)]]
