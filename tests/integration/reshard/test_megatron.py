"""Megatron's files in every version, naming, TP and PP merge; the files are made here by torch alone."""

import argparse
import enum
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fixtures import tiny
from reshard.errors import (
    AmbiguousSourceError,
    CannotSplitError,
    InconsistentShardsError,
    UnsupportedSourceError,
)
from reshard.job import Request
from reshard.run import reshard

Tensors = dict[str, torch.Tensor]
_HEADS, _GROUPS, _HEAD_DIM, _VOCAB = 4, 2, 16, 264


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in ("gpt2", "llama", "qwen3"):
        tiny.save(family, folder / family)
    return folder


def _gpt2_layer(held: Tensors, index: int, tp: int, rank: int, version: float) -> Tensors:
    """One GPT-2 block as a rank of Megatron has it, under its legacy names."""
    prefix = f"transformer.h.{index}."

    def rows(name: str) -> torch.Tensor:
        tensor = held[f"{prefix}{name}"]
        return tensor.T if tensor.dim() == 2 else tensor

    def query_key_value(tensor: torch.Tensor) -> torch.Tensor:
        parts = tensor.reshape(3, _HEADS, _HEAD_DIM, *tensor.shape[1:]).chunk(tp, dim=1)[rank]
        if version == 1.0:
            parts = parts.permute(1, 2, 0, *range(3, parts.dim()))
        elif version >= 2.0:
            parts = parts.transpose(0, 1)
        return parts.reshape(-1, *tensor.shape[1:]).contiguous()

    result = {}
    for param in ("weight", "bias"):
        result[f"input_layernorm.{param}"] = held[f"{prefix}ln_1.{param}"]
        result[f"self_attention.query_key_value.{param}"] = query_key_value(rows(f"attn.c_attn.{param}"))
        result[f"post_attention_layernorm.{param}"] = held[f"{prefix}ln_2.{param}"]
        result[f"mlp.dense_h_to_4h.{param}"] = rows(f"mlp.c_fc.{param}").chunk(tp)[rank].contiguous()
    result["self_attention.dense.weight"] = rows("attn.c_proj.weight").chunk(tp, dim=1)[rank].contiguous()
    result["self_attention.dense.bias"] = rows("attn.c_proj.bias")
    result["mlp.dense_4h_to_h.weight"] = rows("mlp.c_proj.weight").chunk(tp, dim=1)[rank].contiguous()
    result["mlp.dense_4h_to_h.bias"] = rows("mlp.c_proj.bias")
    return result


def _padded(tensor: torch.Tensor, tp: int, rank: int) -> torch.Tensor:
    rows = -(-_VOCAB // (128 * tp)) * 128 * tp
    padding = torch.zeros(rows - tensor.shape[0], tensor.shape[1])
    return torch.cat([tensor, padding]).chunk(tp)[rank].contiguous()


def _gpt2_stages(held: Tensors, tp: int, rank: int, pp: int, version: float, block: str) -> list[Any]:
    """The `model` entries of one TP rank, for each of `pp` stages with one of the two layers."""
    embedding = {
        "word_embeddings": {"weight": _padded(held["transformer.wte.weight"], tp, rank)},
        "position_embeddings": {"weight": held["transformer.wpe.weight"]},
    }
    stages: list[Any] = []
    per_stage = 2 // pp
    for stage in range(pp):
        layers = {
            f"layers.{local}.{key}": value
            for local in range(per_stage)
            for key, value in _gpt2_layer(held, stage * per_stage + local, tp, rank, version).items()
        }
        model: dict[str, Any] = {"language_model": {block: layers}}
        if stage == 0:
            model["language_model"]["embedding"] = embedding
        if stage == pp - 1:
            layers["final_layernorm.weight"] = held["transformer.ln_f.weight"]
            layers["final_layernorm.bias"] = held["transformer.ln_f.bias"]
            if pp > 1:
                model["word_embeddings_for_head"] = {"weight": embedding["word_embeddings"]["weight"].clone()}
        stages.append(model)
    return stages


@pytest.fixture
def saved_state() -> Iterator[dict[str, Any]]:
    """What Megatron saves beside the model: a command line with its own classes, and random state."""
    names = ("megatron", "megatron.core", "megatron.core.enums")
    modules = {name: types.ModuleType(name) for name in names}
    kind = enum.Enum("ModelType", ["encoder_or_decoder"], module="megatron.core.enums")
    modules["megatron.core.enums"].ModelType = kind  # type: ignore[attr-defined]
    sys.modules.update(modules)
    yield {
        "args": argparse.Namespace(model_type=kind.encoder_or_decoder, params_dtype=torch.float16),
        "rng_state": [{"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state()}],
        "iteration": 1000,
    }
    for name in names:
        del sys.modules[name]


def _save(folder: Path, stages: list[Any], rank: int, state: dict[str, Any]) -> None:
    for number, model in enumerate(stages):
        name = f"mp_rank_{rank:02d}" + (f"_{number:03d}" if len(stages) > 1 else "")
        (folder / name).mkdir(parents=True)
        torch.save({"model": model, **state}, folder / name / "model_optim_rng.pt")


def _assert_merges(source: Path, config: Path, output: Path) -> None:
    reshard(Request(source=str(source), output=output, degrees=(1,), format="huggingface", config=config))
    found, wanted = load_file(output / "model.safetensors"), load_file(config / "model.safetensors")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("version", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("tp, pp, block", [(1, 1, "transformer"), (2, 1, "encoder"), (4, 2, "encoder")])
def test_legacy_names_of_every_version_merge(
    checkpoints: Path,
    tmp_path: Path,
    saved_state: dict[str, Any],
    version: float,
    tp: int,
    pp: int,
    block: str,
) -> None:
    held = load_file(checkpoints / "gpt2" / "model.safetensors")
    state = dict(saved_state)
    if version:
        state["checkpoint_version"] = version
    for rank in range(tp):
        stages = _gpt2_stages(held, tp, rank, pp, version, block)
        _save(tmp_path / "megatron" / "iter_0001000", stages, rank, state)
    (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").write_text("1000")
    _assert_merges(tmp_path / "megatron" / "iter_0001000", checkpoints / "gpt2", tmp_path / "merged")
    # The folder above names the iteration.
    _assert_merges(tmp_path / "megatron", checkpoints / "gpt2", tmp_path / "again")


def _llama_layer(held: Tensors, index: int, tp: int, rank: int, *, is_local: bool) -> Tensors:
    """One Llama block under mcore's names; the norms inside the Linears, or modules of their own."""
    prefix = f"model.layers.{index}."
    q, k, v = (held[f"{prefix}self_attn.{n}_proj.weight"] for n in "qkv")
    grouped = [t.reshape(_GROUPS, -1, k.shape[0] // _GROUPS, t.shape[1]) for t in (q, k, v)]
    fused = torch.cat(grouped, dim=1).chunk(tp)[rank]
    gate, up = (held[f"{prefix}mlp.{n}_proj.weight"].chunk(tp)[rank] for n in ("gate", "up"))
    norms = (
        ("input_layernorm.weight", "pre_mlp_layernorm.weight")
        if is_local
        else ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight")
    )
    result = {
        norms[0]: held[f"{prefix}input_layernorm.weight"],
        norms[1]: held[f"{prefix}post_attention_layernorm.weight"],
        "self_attention.linear_qkv.weight": fused.reshape(-1, q.shape[1]).contiguous(),
        "self_attention.linear_proj.weight": _column(held[f"{prefix}self_attn.o_proj.weight"], tp, rank),
        "mlp.linear_fc1.weight": torch.cat([gate, up]),
        "mlp.linear_fc2.weight": _column(held[f"{prefix}mlp.down_proj.weight"], tp, rank),
    }
    for name in "qk":
        norm = held.get(f"{prefix}self_attn.{name}_norm.weight")
        if norm is not None:
            result[f"self_attention.{name}_layernorm.weight"] = norm
    return result


def _column(tensor: torch.Tensor, tp: int, rank: int) -> torch.Tensor:
    return tensor.chunk(tp, dim=1)[rank].contiguous()


def _mcore(held: Tensors, tp: int, rank: int, *, is_local: bool) -> Tensors:
    layers = {
        f"decoder.layers.{i}.{key}": value
        for i in range(2)
        for key, value in _llama_layer(held, i, tp, rank, is_local=is_local).items()
    }
    model = {
        "embedding.word_embeddings.weight": _padded(held["model.embed_tokens.weight"], tp, rank),
        **layers,
        "decoder.final_layernorm.weight": held["model.norm.weight"],
    }
    if "lm_head.weight" in held:
        model["output_layer.weight"] = _padded(held["lm_head.weight"], tp, rank)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("is_local", [False, True])
def test_mcore_names_merge(
    checkpoints: Path, tmp_path: Path, saved_state: dict[str, Any], family: str, is_local: bool
) -> None:
    held = load_file(checkpoints / family / "model.safetensors")
    for rank in range(2):
        model = _mcore(held, 2, rank, is_local=is_local)
        model["decoder.layers.0.self_attention.core_attention._extra_state"] = torch.zeros(1)
        _save(tmp_path / "m" / "release", [model], rank, {**saved_state, "checkpoint_version": 3.0})
    _assert_merges(tmp_path / "m", checkpoints / family, tmp_path / "merged")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_is_written_is_what_megatron_would_hold(checkpoints: Path, tmp_path: Path, family: str) -> None:
    reshard(
        Request(source=str(checkpoints / family), output=tmp_path / "out", degrees=(2,), format="megatron")
    )
    held = load_file(checkpoints / family / "model.safetensors")
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "release"
    for rank in range(2):
        file = tmp_path / "out" / "release" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(file, weights_only=True)
        wanted = _mcore(held, 2, rank, is_local=False)
        assert found["model"].keys() == wanted.keys()
        assert all(torch.equal(found["model"][name], wanted[name]) for name in wanted)
        assert found["checkpoint_version"] == 3.0
        assert found["args"].num_query_groups == 2
        assert found["args"].padded_vocab_size == 512


def test_missing_and_contradicting_ranks_are_refused(
    checkpoints: Path, tmp_path: Path, saved_state: dict[str, Any]
) -> None:
    held = load_file(checkpoints / "llama" / "model.safetensors")
    state = {**saved_state, "checkpoint_version": 3.0}
    _save(tmp_path / "lost", [_mcore(held, 2, 0, is_local=False)], 0, state)
    _save(tmp_path / "lost", [_mcore(held, 2, 1, is_local=False)], 2, state)
    with pytest.raises(InconsistentShardsError, match="mp_rank_01"):
        _assert_merges(tmp_path / "lost", checkpoints / "llama", tmp_path / "out")
    other = tiny.save("llama", tmp_path / "other", seed=1)
    _save(tmp_path / "mixed", [_mcore(held, 2, 0, is_local=False)], 0, state)
    mixed = _mcore(load_file(other / "model.safetensors"), 2, 1, is_local=False)
    _save(tmp_path / "mixed", [mixed], 1, state)
    with pytest.raises(InconsistentShardsError, match="different models"):
        _assert_merges(tmp_path / "mixed", checkpoints / "llama", tmp_path / "out")
    for iteration in ("iter_0000001", "iter_0000002"):
        _save(tmp_path / "two" / iteration, [_mcore(held, 1, 0, is_local=False)], 0, state)
    with pytest.raises(AmbiguousSourceError, match="iter_0000001, iter_0000002"):
        _assert_merges(tmp_path / "two", checkpoints / "llama", tmp_path / "out")
    _save(tmp_path / "odd", [{"decoder.layers.0.strange.weight": torch.ones(2)}], 0, state)
    with pytest.raises(UnsupportedSourceError, match="no layers under names that are known"):
        _assert_merges(tmp_path / "odd", checkpoints / "llama", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kv_heads_are_not_replicated(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotSplitError, match="degrees that work: 1, 2"):
        reshard(
            Request(source=str(checkpoints / "llama"), output=tmp_path / "o", degrees=(4,), format="megatron")
        )
