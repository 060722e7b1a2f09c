"""One rank's priced tensors against the files that ranks load, as reshard writes them."""

from math import prod
from pathlib import Path

import pytest
from safetensors import safe_open

from fixtures.tiny import save
from planner.models.resolve import resolve
from planner.tensor_parallel.rules import DEEPSPEED_TP, TRANSFORMERS_TP, CutRules
from planner.tensor_parallel.shard import sharded
from planner.tracing.store import graph_for
from reshard.job import Request
from reshard.run import reshard

#: Names in files that transformers renames as it loads them.
_RENAMED = {"embed_out.weight": "lm_head.weight"}


def _stored(folder: Path, pattern: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the first rank's tensors by the model's names."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob(pattern)):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                found[_RENAMED.get(name, name)] = tuple(file.get_slice(name).get_shape())
    return found


def _priced(family: str, folder: Path, cache: Path, rules: CutRules) -> dict[str, tuple[int, ...]]:
    graph = sharded(graph_for(resolve(str(folder)), cache_dir=cache), 2, rules)
    return {
        f"{node.name}.{tensor.name}": tensor.shape
        for node in graph.nodes
        for tensor in node.tensors
        if tensor.kind == "parameter"
    }


def _compare(stored: dict[str, tuple[int, ...]], priced: dict[str, tuple[int, ...]]) -> None:
    common = stored.keys() & priced.keys()
    assert len(common) > 0.9 * len(stored)
    assert {name: priced[name] for name in common} == {name: stored[name] for name in common}
    assert sum(prod(priced[n]) for n in common) > 0.9 * sum(map(prod, stored.values()))


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "gpt_neox", "falcon-grouped"])
def test_a_rank_of_autotp_holds_what_it_is_priced_for(family: str, tmp_path: Path) -> None:
    source = save(family, tmp_path / "whole")
    reshard(Request(source=str(source), output=tmp_path / "cut", degrees=(2,), format="safetensors"))
    stored = _stored(tmp_path / "cut", "model-rank-00-of-02*.safetensors")
    _compare(stored, _priced(family, source, tmp_path / "cache", DEEPSPEED_TP))


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_rank_of_transformers_holds_what_it_is_priced_for(family: str, tmp_path: Path) -> None:
    source = save(family, tmp_path / "whole")
    reshard(Request(source=str(source), output=tmp_path / "cut", degrees=(2,), format="transformers"))
    stored = _stored(tmp_path / "cut", "shard-00001-*.safetensors")
    priced = _priced(family, source, tmp_path / "cache", TRANSFORMERS_TP)
    # What is whole on every rank is stored once, in either rank's file.
    common = stored.keys() & priced.keys()
    assert len(common) > 0.9 * len(stored)
    assert {name: priced[name] for name in common} == {name: stored[name] for name in common}
