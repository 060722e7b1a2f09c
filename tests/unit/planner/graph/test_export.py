"""The three forms of an exported graph, on a small model written by hand."""

import json
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest

from planner.errors import InvalidInputError
from planner.graph.export import export
from planner.graph.picture import draw
from planner.graph.schema import (
    SCHEMA_VERSION,
    Edge,
    ItemsizeCost,
    KvCost,
    ModuleGraph,
    Node,
    PhaseCost,
    Poly,
    Tensor,
)
from planner.graph.stages import stages

_SVG = "{http://www.w3.org/2000/svg}"


def _cost(decode: Poly) -> dict[str, ItemsizeCost]:
    return {
        "2": ItemsizeCost(
            prefill=PhaseCost(num_ops=1, flops=Poly(bp=2.0)), decode=PhaseCost(num_ops=1, flops=decode)
        )
    }


def _graph(*, num_blocks: int = 3, wide: int | None = None) -> ModuleGraph:
    """An embedding, blocks of one attention and one MLP, a float32 norm, and a head tied to the embedding."""
    nodes = [Node(name="", class_name="Toy<LM>", order=0), _owner("embed", "Embedding", 1, (100, 8))]
    for i in range(num_blocks):
        width = 16 if i == wide else 4
        attention = Node(
            name=f"layers.{i}.attn",
            class_name="Attention",
            order=2 + 2 * i,
            block=f"layers.{i}",
            tensors=(Tensor(name="weight", shape=(8, 8)),),
            costs=_cost(Poly(b=128.0, bc=16.0)),
            kv=KvCost(per_token=32.0),
        )
        nodes += [attention, _owner(f"layers.{i}.mlp", "Linear", 3 + 2 * i, (8, width), f"layers.{i}")]
    nodes += [
        Node(
            name="norm",
            class_name="RMSNorm",
            order=1000,
            tensors=(Tensor(name="weight", shape=(8,), dtype="float32"),),
        ),
        Node(name="drop", class_name="Dropout", order=1001),
        _owner("head", "Linear", 1002, (100, 8)),
    ]
    return ModuleGraph(
        schema_version=SCHEMA_VERSION,
        model_class="Toy<LM>",
        model_type="toy",
        config_sha256="0" * 64,
        versions={"torch": "2"},
        nodes=tuple(nodes),
        edges=(Edge(source="embed", target="layers.0.attn", bytes_per_token=16.0),),
        blocks=tuple(f"layers.{i}" for i in range(num_blocks)),
        ties=(("embed.weight", "head.weight"),),
    )


def _owner(name: str, class_name: str, order: int, shape: tuple[int, ...], block: str | None = None) -> Node:
    return Node(
        name=name,
        class_name=class_name,
        order=order,
        block=block,
        tensors=(Tensor(name="weight", shape=shape),),
        costs=_cost(Poly(b=10.0)),
    )


def test_stages_collapse_the_blocks() -> None:
    embed, blocks, norm, head = stages(_graph())
    assert embed.weight_bytes == (100 * 8 * 2,)
    assert blocks.title == "3 × layers"
    assert blocks.fqns == ("layers.0", "layers.1", "layers.2")
    # 64 + 32 elements of 2 bytes; 128 + 16 · 1025 of attention and 10 of the MLP.
    assert blocks.weight_bytes == (192, 192, 192)
    assert blocks.decode_flops == (16538.0,) * 3
    assert blocks.kv_bytes_per_token == (32.0, 32.0, 32.0)
    assert norm.weight_bytes == (8 * 4,)
    assert (head.weight_bytes, head.tied_to) == ((0,), "embed.weight")


def test_block_that_differs_stays_in_its_run() -> None:
    blocks = stages(_graph(wide=1))[1]
    assert blocks.weight_bytes == (192, 384, 192)
    assert "weights 768 B (192 B to 384 B each)" in draw(_graph(wide=1))


def test_json_is_node_link_data(tmp_path: Path) -> None:
    export(_graph(), tmp_path / "g.json")
    data = json.loads((tmp_path / "g.json").read_text())
    network = nx.node_link_graph(data, edges="edges")
    assert network.number_of_nodes() == 1 + 1 + 6 + 3
    assert network.edges["embed", "layers.0.attn"]["bytes_per_token"] == 16.0
    assert network.graph["cost_terms"] == ["const", "b", "p", "bp", "p2", "bp2", "c", "bc"]
    attention = network.nodes["layers.1.attn"]
    assert attention["costs"]["2"]["decode"]["flops"][1] == 128.0
    assert attention["tensors"] == [{"name": "weight", "shape": [8, 8]}]
    assert attention["kv"] == {"per_token": 32.0}


def test_graphml_reads_back(tmp_path: Path) -> None:
    export(_graph(), tmp_path / "g.graphml")
    network = nx.read_graphml(tmp_path / "g.graphml")
    assert set(network) == {n.name or "(root)" for n in _graph().nodes}
    assert network.nodes["embed"]["num_parameters"] == 800
    assert network.edges["embed", "layers.0.attn"]["bytes_per_token"] == 16.0
    assert json.loads(network.graph["blocks"]) == ["layers.0", "layers.1", "layers.2"]


def test_picture_says_what_is_where(tmp_path: Path) -> None:
    export(_graph(), tmp_path / "g.SVG")
    root = ElementTree.parse(tmp_path / "g.SVG").getroot()
    texts = [element.text for element in root.iter(f"{_SVG}text")]
    # 800 of the embedding, 96 in each block, 8 of the norm.
    assert "Toy<LM>, 1.10K parameters" in texts
    assert "3 × layers" in texts
    assert "layers.0 … layers.2" in texts
    assert "KV cache per token 96 B (32 B each)" in texts
    assert "tied to embed.weight" in texts
    assert "drop" not in texts


@pytest.mark.parametrize("num_blocks", [1, 2, 126])
def test_nothing_in_the_picture_overlaps(num_blocks: int) -> None:
    root = ElementTree.fromstring(draw(_graph(num_blocks=num_blocks)))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [r for r in root.iter(f"{_SVG}rect") if r.attrib.get("class") in {"box", "stack"}]
    assert len(boxes) == 4
    spans = [(float(b.attrib["y"]), float(b.attrib["y"]) + float(b.attrib["height"])) for b in boxes]
    assert all(above[1] < below[0] for above, below in pairwise(spans))
    assert spans[-1][1] < height
    lines = sorted((float(t.attrib["y"]), t) for t in root.iter(f"{_SVG}text"))
    assert all(below[0] - above[0] >= 14 for above, below in pairwise(lines))
    for y, text in lines:
        size = 14 if text.attrib["class"] == "title" else 12
        # 0.602 em is the advance of the first font in the list.
        assert float(text.attrib["x"]) + len(text.text or "") * size * 0.602 < width - 14
        assert y < height


def test_same_graph_gives_the_same_picture() -> None:
    assert draw(_graph()) == draw(_graph())
    assert re.search(r'width="\d+" height="\d+"', draw(_graph()))


@pytest.mark.parametrize("name", ["g.png", "g", "g.json.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"must end in \.json, \.graphml, \.svg"):
        export(_graph(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.json").mkdir()
    with pytest.raises(InvalidInputError, match="is a folder"):
        export(_graph(), tmp_path / "d.json")


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write a graph to"):
        export(_graph(), tmp_path / "file" / "g.json")


def test_failure_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InvalidInputError, match="No space left"):
        export(_graph(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
