"""How `planner graph` shows a graph, on a hand-built one: two blocks, a tied head, long names."""

import json
from pathlib import Path

import pytest

import cli.main
from cli.commands import graph as graph_command
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

_COST = ItemsizeCost(prefill=PhaseCost(num_ops=1), decode=PhaseCost(num_ops=1, flops=Poly(b=2e9)))
_COSTS = {"2": _COST, "4": _COST}


def _block(index: int) -> Node:
    name = f"model.decoder.layers.{index}"
    return Node(
        name=name,
        class_name="OPTDecoderLayer",
        order=index + 1,
        block=name,
        tensors=(Tensor(name="weight", shape=(1000, 1000)),),
        costs=_COSTS,
        kv=KvCost(per_token=28_672.0, window=4096),
    )


def _plain(name: str, order: int) -> Node:
    weight = Tensor(name="weight", shape=(100, 50))
    return Node(name=name, class_name="Embedding", order=order, tensors=(weight,), costs=_COSTS)


@pytest.fixture(autouse=True)
def _hand_built_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    graph = ModuleGraph(
        schema_version=SCHEMA_VERSION,
        model_class="OPTForCausalLM",
        model_type="opt",
        config_sha256="",
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        nodes=(_plain("model.decoder.embed_tokens", 0), _block(0), _block(1), _plain("lm_head", 9)),
        edges=(Edge(source="model.decoder.layers.0", target="model.decoder.layers.1", bytes_per_token=8.0),),
        blocks=("model.decoder.layers.0", "model.decoder.layers.1"),
        co_located=(("model.decoder.embed_tokens", "lm_head"),),
        ties=(("model.decoder.embed_tokens.weight", "lm_head.weight"),),
    )
    monkeypatch.setattr(graph_command, "graph_for", lambda spec: graph)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["graph", "--model", "opt-13b"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    text = " ".join(output.split())
    # Two blocks of 10⁶ and one table of 5,000; 2 · 28,672 bytes are 56 KiB.
    assert "parameters 2,005,000" in text
    assert "56.0 KiB per token" in text
    assert "OPTDecoderLayer 1.00M 28.0 KiB 2.00 GFLOP 4,096" in text
    assert "must share a device: model.decoder.embed_tokens, lm_head" in text
    assert "tied tensors: model.decoder.embed_tokens.weight = lm_head.weight" in text
    assert "model.decoder.embed_tokens Embedding 5.00K" in text
    # The cell may break at its spaces, and the other columns then stand between its parts.
    for part in ("2 ×", "model.decoder.layers.0 …"):
        assert part in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["graph", "--model", "opt-13b", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_parameters"] == 2_005_000
    (kind,) = summary["block_kinds"]
    assert kind["fqns"] == ["model.decoder.layers.0", "model.decoder.layers.1"]


def test_out_writes_the_file_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graph.json"
    assert cli.main.run(["graph", "--model", "opt-13b", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "num_modules": 4, "num_edges": 1}
    assert len(json.loads(out.read_text())["nodes"]) == 4


def test_an_unknown_suffix_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["graph", "--model", "opt-13b", "--out", str(tmp_path / "graph.xyz")]) == 3
    assert ".xyz" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
