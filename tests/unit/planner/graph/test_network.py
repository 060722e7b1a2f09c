"""A graph as networkx has it."""

from fixtures.graphs import layered_graph
from planner.graph.network import to_networkx


def test_networkx_has_every_module_and_flow() -> None:
    graph = layered_graph(3)
    found = to_networkx(graph)
    assert set(found) == {n.name for n in graph.nodes}
    assert found.edges["embed", "layers.0.attention"]["bytes_per_token"] == 2 * 64
    assert found.graph["num_parameters"] == graph.num_parameters
