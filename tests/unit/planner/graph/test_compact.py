"""The compact file loses nothing, stays small, and refuses what it is not."""

import msgspec
import pytest

from fixtures.graphs import layered_graph
from planner.errors import BadFileError
from planner.graph.compact import canonical, decode, encode
from planner.graph.schema import Edge, ModuleGraph


@pytest.mark.parametrize("layers", [1, 2, 3, 70])
@pytest.mark.parametrize("wide_every", [0, 2, 3])
def test_round_trip_is_exact(layers: int, wide_every: int) -> None:
    graph = layered_graph(layers, tied=True, wide_every=wide_every)
    assert decode(encode(graph)) == canonical(graph)


def test_round_trip_keeps_odd_edges_and_names() -> None:
    graph = layered_graph(4)
    odd = msgspec.structs.replace(
        graph,
        edges=(
            *graph.edges,
            Edge(source="layers.0.up", target="layers.3.down", bytes_per_token=1.0),
            Edge(source="layers.1.up", target="layers.2.down", bytes_per_token=1.0),
            Edge(source="embed", target="layers.3.down", bytes_per_token=2.0),
        ),
    )
    assert decode(encode(odd)) == canonical(odd)


def test_layers_cost_no_space() -> None:
    few, many = len(encode(layered_graph(4))), len(encode(layered_graph(400)))
    # The list of blocks is spelled out; everything else of a layer is a number in a run.
    assert many - few < 400 * len('"layers.000",') + 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"[]",
        lambda b: b.replace(b'"kinds"', b'"kindz"'),
        lambda b: b.replace(b'"schema_version":2', b'"schema_version":99'),
    ],
)
def test_damage_is_a_sentence(damage: object) -> None:
    payload: bytes = damage(encode(layered_graph(2)))  # type: ignore[operator]
    with pytest.raises(BadFileError, match="some file"):
        decode(payload, origin="some file")


def test_a_kind_that_is_not_there_is_refused() -> None:
    payload = msgspec.json.decode(encode(layered_graph(2)))
    payload["runs"][0][2] = 999
    with pytest.raises(BadFileError):
        decode(msgspec.json.encode(payload))


def test_decoded_graph_is_the_schema_type() -> None:
    assert isinstance(decode(encode(layered_graph(2))), ModuleGraph)
