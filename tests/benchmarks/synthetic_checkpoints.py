"""Checkpoints of realistic shapes and of any size, from a seed, streamed to the disk: for benchmarks."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

_SHARD_BYTES: Final = 10**9
_ITEMSIZE: Final = 2
_BLOCK: Final = 1 << 22
#: The spread of a trained Linear's weights.
_SPREAD: Final = 0.02

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def llama_config(*, hidden: int = 4096, inner: int = 14336, kv_heads: int = 8, vocab: int = 32000) -> Any:
    """A configuration with as many layers as `write` finds; by default Mistral-7B's shapes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def opt_config() -> Any:
    """OPT-6.7B's shapes."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 4096,
        "word_embed_proj_dim": 4096,
        "ffn_dim": 16384,
        "num_attention_heads": 32,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _llama(config: Any, layers: int) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)


def _opt(config: Any, layers: int) -> Shapes:
    hidden, inner = config["hidden_size"], config["ffn_dim"]
    yield "model.decoder.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.decoder.embed_positions.weight", (config["max_position_embeddings"] + 2, hidden)
    blocks = [f"model.decoder.layers.{i}." for i in range(layers)]
    linears = {f"self_attn.{part}_proj": (hidden, hidden) for part in ("q", "k", "v", "out")}
    linears |= {"fc1": (inner, hidden), "fc2": (hidden, inner)}
    for block in blocks:
        for name, shape in linears.items():
            yield f"{block}{name}.weight", shape
            yield f"{block}{name}.bias", shape[:1]
    norms = [block + name for block in blocks for name in ("self_attn_layer_norm", "final_layer_norm")]
    for name in (*norms, "model.decoder.final_layer_norm"):
        yield f"{name}.weight", (hidden,)
        yield f"{name}.bias", (hidden,)


def _tensors(config: Any, layers: int) -> Shapes:
    return (_llama if config["model_type"] == "llama" else _opt)(config, layers)


def _size(shapes: Shapes) -> int:
    return _ITEMSIZE * sum(math.prod(shape) for _, shape in shapes)


def write(folder: Path, config: Any, at_least_bytes: int, seed: int = 0) -> int:
    """Write a bfloat16 checkpoint in shards of at most 1 GB, with an index; its bytes.

    Args:
        folder: where to; made.
        config: of `llama_config` or `opt_config`; the number of layers is added.
        at_least_bytes: as few layers as reach it, one at least.
        seed: of the normally distributed weights.
    """
    layers = 1
    while (size := _size(_tensors(config, layers))) < at_least_bytes:
        layers += 1
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in _tensors(config, layers):
        if shards[-1] and _size(iter([*shards[-1].items(), (name, shape)])) > _SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    random = np.random.Generator(np.random.SFC64(seed))
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard, random)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def _write_shard(path: Path, shard: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shard.items():
        end = at + _ITEMSIZE * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        left = at // _ITEMSIZE
        while left:
            count = min(left, _BLOCK)
            values = random.standard_normal(count, dtype=np.float32) * np.float32(_SPREAD)
            # The upper half of a float32 is the bfloat16 that is nearest to it towards zero.
            stream.write((values.view(np.uint32) >> 16).astype(np.uint16).data)
            left -= count
