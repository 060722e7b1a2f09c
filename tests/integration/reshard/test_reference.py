"""The `deepspeed` target against bytes that DeepSpeed 0.19.8 wrote itself: every tensor of every rank."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .variants import Tensors, assert_equal, cut, load

DATA = Path(__file__).resolve().parents[2] / "data" / "deepspeed"
MODELS = ("bloom", "opt")
TP_SIZE = 2


def reference(model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / model / "deepspeed_tp2.json").read_text())
    return found


def account(tensor: torch.Tensor) -> dict[str, Any]:
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def of_rank(config: dict[str, Any], rank: int) -> list[str]:
    """The files that a rank's loader reads: every `tp_size`-th of the list, and those of all ranks."""
    checkpoints = config["checkpoints"]
    return [*checkpoints["tp"][rank :: config["tp_size"]], *checkpoints["non_tp"]]


@pytest.mark.parametrize("source_dtype", ["float16", "float32"])
@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_equals_deepspeeds(model: str, source_dtype: str, work: Path) -> None:
    source, output = DATA / model, work / "cut"
    if source_dtype == "float32":
        source = work / "wide"
        source.mkdir()
        tensors = load_file(DATA / model / "model.safetensors")
        save_file({n: t.float() for n, t in tensors.items()}, source / "model.safetensors")
        (source / "config.json").write_bytes((DATA / model / "config.json").read_bytes())
    cut(source, output, TP_SIZE, format="deepspeed", dtype="float16")
    ours = json.loads((output / "ds_inference_config.json").read_text())
    theirs = reference(model)
    for field in ("type", "version", "parallelization", "tp_size", "dtype"):
        assert ours[field] == theirs["ds_inference_config"][field]
    for rank in range(TP_SIZE):
        expected = {
            key: entry
            for file in of_rank(theirs["ds_inference_config"], rank)
            for key, entry in theirs["files"][file].items()
        }
        found: dict[str, dict[str, Any]] = {}
        for file in of_rank(ours, rank):
            held = torch.load(output / file, weights_only=True)
            assert not set(held) & set(found)
            found |= {key: account(tensor) for key, tensor in held.items()}
        assert len(found) >= 17
        assert found == expected


@pytest.mark.parametrize("model", MODELS)
def test_deepspeeds_own_files_are_read_back(model: str, work: Path) -> None:
    """Its partition scatters keys otherwise than ours, and its `base_dir` is of another machine."""
    original = load_file(DATA / model / "model.safetensors")
    theirs = reference(model)
    folder = work / "theirs"
    folder.mkdir()
    (folder / "config.json").write_bytes((DATA / model / "config.json").read_bytes())
    config = theirs["ds_inference_config"] | {"base_dir": "/somewhere/else"}
    (folder / "ds_inference_config.json").write_text(json.dumps(config))
    for file, entries in theirs["files"].items():
        rank = int(file.split("_")[1]) if file.startswith("tp_") else 0
        rebuilt = {key: _injected(model, original, key, rank) for key in entries}
        assert {key: account(tensor) for key, tensor in rebuilt.items()} == entries
        torch.save(rebuilt, folder / file)
    merged = work / "merged"
    cut(folder, merged, 1, format="huggingface")
    assert_equal(load(merged), original | _tied(model, load(merged)))
    for tp_size in (1, 2, 4):
        again, direct = work / f"again{tp_size}", work / f"direct{tp_size}"
        for source, output in ((folder, again), (DATA / model, direct)):
            cut(source, output, tp_size, format="deepspeed")
        for file in sorted(direct.glob("*.pt")):
            assert_equal(
                torch.load(again / file.name, weights_only=True),
                torch.load(file, weights_only=True),
                file.name,
            )


def _tied(model: str, merged: Tensors) -> Tensors:
    """A tied head may come back under its own name, if it is the embedding."""
    if "lm_head.weight" not in merged:
        return {}
    embedding = {"bloom": "transformer.word_embeddings", "opt": "model.decoder.embed_tokens"}[model]
    return {"lm_head.weight": merged[f"{embedding}.weight"]}


_BLOOM = {
    "attention.attn_ow": "self_attention.dense.weight",
    "attention.attn_ob": "self_attention.dense.bias",
    "attention.attn_qkvw": "self_attention.query_key_value.weight",
    "attention.attn_qkvb": "self_attention.query_key_value.bias",
    "mlp.attn_nw": "post_attention_layernorm.weight",
    "mlp.attn_nb": "post_attention_layernorm.bias",
    "mlp.inter_w": "mlp.dense_h_to_4h.weight",
    "mlp.inter_b": "mlp.dense_h_to_4h.bias",
    "mlp.output_w": "mlp.dense_4h_to_h.weight",
    "mlp.output_b": "mlp.dense_4h_to_h.bias",
    "norm_w": "input_layernorm.weight",
    "norm_b": "input_layernorm.bias",
}
_OPT = {
    "attention.attn_ow": "self_attn.out_proj.weight",
    "attention.attn_ob": "self_attn.out_proj.bias",
    "mlp.attn_nw": "final_layer_norm.weight",
    "mlp.attn_nb": "final_layer_norm.bias",
    "mlp.inter_w": "fc1.weight",
    "mlp.inter_b": "fc1.bias",
    "mlp.output_w": "fc2.weight",
    "mlp.output_b": "fc2.bias",
    "norm_w": "self_attn_layer_norm.weight",
    "norm_b": "self_attn_layer_norm.bias",
}


def _injected(model: str, original: Tensors, key: str, rank: int) -> torch.Tensor:
    """The tensor that DeepSpeed's injected module has under `key`, by plain slicing."""
    if key == "lm_head.weight" and key not in original:
        key = {"bloom": "transformer.word_embeddings.weight", "opt": "model.decoder.embed_tokens.weight"}[
            model
        ]
    if key in original:
        return original[key]
    layer = {"bloom": "transformer.h.0.", "opt": "model.decoder.layers.0."}[model]
    param = key.removeprefix(layer)
    if model == "opt" and param.startswith("attention.attn_qkv"):
        suffix = "weight" if param.endswith("w") else "bias"
        parts = [original[f"{layer}self_attn.{p}_proj.{suffix}"].chunk(TP_SIZE)[rank] for p in "qkv"]
        tensor = torch.cat(parts)
    else:
        tensor = original[layer + {"bloom": _BLOOM, "opt": _OPT}[model][param]]
        if param in ("attention.attn_qkvw", "attention.attn_qkvb", "mlp.inter_w", "mlp.inter_b"):
            tensor = tensor.chunk(TP_SIZE)[rank]
        elif param in ("attention.attn_ow", "mlp.output_w"):
            tensor = tensor.chunk(TP_SIZE, 1)[rank]
    return tensor.T.contiguous() if tensor.dim() == 2 else tensor.clone()
