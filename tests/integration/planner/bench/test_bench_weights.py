"""Random weights: transformers loads them whole, with nothing missing and nothing left over."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from fixtures import tiny
from planner.bench import weights
from planner.bench.weights import stored_tensors, write_random
from planner.errors import InvalidInputError
from planner.models.resolve import resolve
from planner.tracing.store import graph_for

FAMILIES = ("gptj", "opt", "bloom", "gpt_neox", "gpt2", "llama", "t5")


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_finds_every_tensor(family: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny.save(family, source)
    spec = resolve(str(source))
    folder = write_random(tmp_path / "random", spec, graph_for(spec), "float32")
    auto = {"causal-lm": "AutoModelForCausalLM", "seq2seq-lm": "AutoModelForSeq2SeqLM"}[spec.auto_class]
    model, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    ids = torch.ones(1, 4, dtype=torch.long)
    inputs = {"decoder_input_ids": ids} if spec.auto_class == "seq2seq-lm" else {}
    with torch.no_grad():
        assert torch.isfinite(model(ids, **inputs).logits).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_are_small_distinct_and_of_the_dtype(dtype: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny.save("opt", source)
    spec = resolve(str(source))
    graph = graph_for(spec)
    folder = write_random(tmp_path / "random", spec, graph, dtype)
    (file,) = folder.glob("*.safetensors")
    seen = set()
    with safe_open(file, framework="pt") as opened:
        assert set(opened.keys()) == {fqn for fqn, _, _ in stored_tensors(graph, dtype)}
        for fqn, tensor, _ in stored_tensors(graph, dtype):
            found = opened.get_tensor(fqn)
            assert found.dtype is getattr(torch, dtype)
            assert found.shape == tensor.shape
            seen.add(tuple(found.flatten()[:8].tolist()))
            if found.numel() > 2000:
                assert 0.015 < found.float().std() < 0.025
    assert len(seen) == len(stored_tensors(graph, dtype))


def test_large_tensors_and_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors longer than the block go round; each shard holds what its index says."""
    source = tmp_path / "source"
    tiny.save("llama", source)
    spec = resolve(str(source))
    graph = graph_for(spec)
    whole = write_random(tmp_path / "whole", spec, graph, "float16")
    monkeypatch.setattr(weights, "_SHARD_BYTES", 20_000)
    monkeypatch.setattr(weights, "_BLOCK", 1009)
    monkeypatch.setattr(weights, "_PIECE", 512)
    parts = write_random(tmp_path / "parts", spec, graph, "float16")
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    total = 0
    for name in set(index["weight_map"].values()):
        with safe_open(parts / name, framework="np") as opened:
            for fqn in opened.keys():  # noqa: SIM118 (no mapping)
                assert index["weight_map"][fqn] == name
                values = opened.get_tensor(fqn)
                total += values.nbytes
                flat = values.flatten()
                if len(flat) > 2 * 1009:
                    np.testing.assert_array_equal(flat[:1009], flat[1009:2018])
    assert total == index["metadata"]["total_size"]
    transformers.AutoModelForCausalLM.from_pretrained(parts)
    assert len(list(whole.glob("*.safetensors"))) == 1


def test_a_folder_is_written_once_and_never_mixed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny.save("opt", source)
    spec = resolve(str(source))
    graph = graph_for(spec)
    folder = write_random(tmp_path / "random", spec, graph, "float32")
    (file,) = folder.glob("*.safetensors")
    before = file.stat().st_mtime_ns
    assert write_random(folder, spec, graph, "float32") == folder
    assert file.stat().st_mtime_ns == before
    with pytest.raises(InvalidInputError, match="something other"):
        write_random(folder, spec, graph, "float16")
    with pytest.raises(InvalidInputError, match="something other"):
        write_random(source, spec, graph, "float32")


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path: Path) -> None:
    spec = resolve("bloom-176b")
    folder = tmp_path / "random"
    with pytest.raises(InvalidInputError, match=r"take 3\d\d\.\d GiB"):
        write_random(folder, spec, graph_for(spec), "float16")
    assert not list(folder.glob("*.safetensors"))
