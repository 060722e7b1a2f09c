"""Checkpoints of other makers: archives, AutoTP's own files, and tensors that no model has."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fixtures import tiny
from reshard.errors import DamagedFileError
from reshard.job import Request
from reshard.run import reshard

from .oracle import rank_shard
from .variants import (
    VARIANTS,
    assert_equal,
    cut,
    load,
    save,
)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("name", ["llama-kv2", "gpt2", "t5"])
def test_pytorch_archives_as_a_source(name: str, is_split: bool, work: Path) -> None:
    """Tied tensors share their data there, and a weight may be stored as its transpose."""
    variant = VARIANTS[name]
    original = save(variant, work / "hf")
    folder = work / "bin"
    folder.mkdir()
    (folder / "config.json").write_bytes((work / "hf" / "config.json").read_bytes())
    names = list(original)
    held = OrderedDict((n, t.T.contiguous().T if t.dim() == 2 else t) for n, t in original.items())
    tied = {"gpt2": "transformer.wte.weight", "t5": "shared.weight"}.get(name)
    if tied:
        held["lm_head.weight"] = held[tied]
    if is_split:
        # What is tied is saved in one file: sharing ends at a file's edge.
        front = {n for n in names[: len(names) // 2] if n != tied}
        split = [{n: t for n, t in held.items() if (n in front) == is_front} for is_front in (True, False)]
        files = {f"pytorch_model-0000{i + 1}-of-00002.bin": part for i, part in enumerate(split)}
        index = {n: file for file, part in files.items() for n in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        files = {"pytorch_model.bin": dict(held)}
    for file, part in files.items():
        torch.save(part, folder / file)
    expected = original | ({"lm_head.weight": original[tied]} if tied else {})
    cut(folder, work / "cut", 1, 4)
    assert_equal(load(work / "cut" / "tp1"), expected)
    for rank in range(4):
        found = load(work / "cut" / "tp4", f"*-rank-{rank:02d}-*")
        assert_equal(found, rank_shard(variant, expected, 4, rank))
    cut(work / "cut" / "tp4", work / "merged", 1, format="huggingface")
    assert_equal(load(work / "merged"), expected)


@pytest.mark.parametrize("name", ["llama-kv12", "t5", "bloom", "gpt_neox"])
def test_what_autotp_saves_is_read(name: str, work: Path) -> None:
    """`tp_RR_MM.pt` under Hugging Face names, which AutoTP writes and cannot load again."""
    variant = VARIANTS[name]
    original = save(variant, work / "hf")
    folder = work / "autotp"
    folder.mkdir()
    (folder / "config.json").write_bytes((work / "hf" / "config.json").read_bytes())
    files = []
    for part in range(2):
        for rank in range(2):
            shard = rank_shard(variant, original, 2, rank)
            mine = {n: t for i, (n, t) in enumerate(shard.items()) if i % 2 == part}
            files.append(f"tp_{rank:02d}_{part:02d}.pt")
            torch.save(mine, folder / files[-1])
    torch.save({}, folder / "non-tp.pt")
    config = {"type": "ds_model", "tp_size": 2, "checkpoints": {"non_tp": ["non-tp.pt"], "tp": files}}
    (folder / "ds_inference_config.json").write_text(json.dumps(config))
    cut(folder, work / "merged", 1, format="huggingface")
    assert_equal(load(work / "merged"), original)
    cut(folder, work / "cut", 4)
    for rank in range(4):
        assert_equal(load(work / "cut", f"*-rank-{rank:02d}-*"), rank_shard(variant, original, 4, rank))


def test_odd_tensors_survive(work: Path) -> None:
    """Scalars, empty tensors, and dtypes that no cast touches; several files with an index."""
    original = save(VARIANTS["llama"], work / "hf", max_shard_size="100KB")
    index = json.loads((work / "hf" / "model.safetensors.index.json").read_text())
    odd = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(0),
        "model.layers.1.self_attn.rotary_emb.inv_freq": torch.tensor(3.5, dtype=torch.float64),
        "model.norm.weight": original["model.norm.weight"].to(torch.float8_e4m3fn),
        "model.layers.0.input_layernorm.weight": torch.arange(96) % 2 == 0,
        "model.layers.1.input_layernorm.weight": torch.arange(96).to(torch.complex64),
    }
    for name in odd:
        index["weight_map"].setdefault(name, index["weight_map"]["model.norm.weight"])
    (work / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in sorted((work / "hf").glob("*.safetensors")):
        held = {n: odd.get(n, original.get(n)) for n, f in index["weight_map"].items() if f == file.name}
        save_file(held, file)
    original |= odd
    cut(work / "hf", work / "cut", 2, 8)
    for tp_size in (2, 8):
        cut(work / "cut" / f"tp{tp_size}", work / f"merged{tp_size}", 1, format="huggingface")
        assert_equal(load(work / f"merged{tp_size}"), original)
    cut(work / "hf", work / "half", 2, dtype="float16")
    found = load(work / "half", "*-rank-00-*")
    kept = {n: t.dtype for n, t in odd.items() if t.dtype not in (torch.float32, torch.float64)}
    assert {n: t.dtype for n, t in found.items() if t.dtype != torch.float16} == kept
    assert found["model.layers.1.self_attn.rotary_emb.inv_freq"] == 3.5


def test_an_index_that_was_cut_short_is_no_smaller_model(tmp_path: Path) -> None:
    source = tiny.save("llama", tmp_path / "source", max_shard_size="100KB")
    index = source / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"] = {n: f for n, f in found["weight_map"].items() if ".layers.1." not in n}
    index.write_text(json.dumps(found))
    with pytest.raises(DamagedFileError, match="no tensors of block 1"):
        reshard(Request(source=str(source), output=tmp_path / "out", degrees=(2,)))
