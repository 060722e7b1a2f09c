"""Which tensors are quantized, from names, shapes and the family's table alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quantize.errors import UnknownPatternError
from quantize.select import Decision, decide, quantized
from reshard.errors import CheckpointError
from reshard.job import open_source

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "tie_word_embeddings": False,
}
SHAPES = {
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.k_proj.weight": (8, 8),
    "self_attn.v_proj.weight": (8, 8),
    "self_attn.o_proj.weight": (8, 8),
    "self_attn.q_proj.bias": (8,),
    "mlp.gate_proj.weight": (16, 8),
    "mlp.up_proj.weight": (16, 8),
    "mlp.down_proj.weight": (8, 16),
    "input_layernorm.weight": (8,),
    "post_attention_layernorm.weight": (8,),
}
LINEARS = [name for name in SHAPES if name.endswith("proj.weight")]


def write(folder: Path, dtypes: dict[str, torch.dtype] | None = None) -> Path:
    tensors = {f"model.layers.{layer}.{n}": torch.ones(s) for layer in (0, 1) for n, s in SHAPES.items()}
    tensors |= {name: torch.ones(32, 8) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tensors["model.norm.weight"] = torch.ones(8)
    made = {name: t.to((dtypes or {}).get(name, torch.float32)) for name, t in tensors.items()}
    save_file(made, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def decided(folder: Path, **patterns: Any) -> dict[str, Decision]:
    return decide(open_source(str(folder)), **patterns)


def test_linears_of_blocks_and_nothing_else(tmp_path: Path) -> None:
    found = decided(write(tmp_path))
    assert set(quantized(found)) == {f"model.layers.{layer}.{name}" for layer in (0, 1) for name in LINEARS}
    assert found["lm_head.weight"].reason == "the head stays: its errors go straight into the logits"
    assert found["model.embed_tokens.weight"].reason.startswith("embeddings stay")
    assert found["model.norm.weight"].reason == "a norm"
    assert found["model.layers.0.self_attn.q_proj.bias"].reason == "a bias, or no matrix"
    query = found["model.layers.0.self_attn.q_proj.weight"]
    assert (query.role, query.module) == ("query", "model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    "patterns, more, fewer",
    [
        ({"include": ["lm_head"]}, {"lm_head.weight"}, set()),
        ({"include": ["lm_head.weight"]}, {"lm_head.weight"}, set()),
        ({"include": ["*embed*"]}, {"model.embed_tokens.weight"}, set()),
        ({"exclude": ["model.layers.1.*"]}, set(), {f"model.layers.1.{name}" for name in LINEARS}),
        ({"exclude": ["*.[qk]_proj"]}, set(), {n for n in LINEARS if "q_proj" in n or "k_proj" in n}),
        # What is excluded stays, whatever is included.
        ({"include": ["lm_head"], "exclude": ["lm_*"]}, set(), set()),
        # No matrix is made of a norm by asking for it.
        ({"include": ["model.norm", "*.bias"]}, set(), set()),
    ],
)
def test_patterns_of_modules_and_tensors(
    patterns: dict[str, list[str]], more: set[str], fewer: set[str], tmp_path: Path
) -> None:
    write(tmp_path)
    plain = set(quantized(decided(tmp_path)))
    found = set(quantized(decided(tmp_path, **patterns)))
    assert found - plain == more
    assert {n for n in plain if n in fewer or n.partition("layers.")[2][2:] in fewer} == plain - found


def test_a_weight_of_integers_stays(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    found = decided(write(tmp_path, {name: torch.int8}))
    assert not found[name].is_quantized
    assert found[name].reason == "it is int8 already"


@pytest.mark.parametrize("kind", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_a_mistake(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownPatternError, match=r"the pattern 'q_proj' matches no tensor of"):
        decided(write(tmp_path), **{kind: ["*", "q_proj"]})


def test_a_tensor_that_no_table_knows(tmp_path: Path) -> None:
    write(tmp_path)
    save_file({"model.layers.0.other.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.other"):
        decided(tmp_path)
