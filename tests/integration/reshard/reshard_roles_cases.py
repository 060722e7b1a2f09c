"""Roles written by hand for families with and without a table, and a plain way to cut by them."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers

from reshard import roles as roles_files
from reshard.roles import Roles, WeightRoles

from .variants import Tensors, load


def per_head(num_heads: int, width: int, *begins: int) -> WeightRoles:
    """One group per head: `width` rows from each of `begins` on, and so on with a head's step of `width`."""
    return WeightRoles(
        dim=0,
        groups=tuple(
            tuple((b + head * width, b + (head + 1) * width) for b in begins) for head in range(num_heads)
        ),
    )


def columns(weight: WeightRoles) -> WeightRoles:
    return WeightRoles(dim=1, groups=weight.groups)


def write(roles: Roles, path: Path) -> Path:
    path.write_bytes(roles_files.encode(roles))
    return path


def build(model_type: str, folder: Path, **settings: Any) -> Tensors:
    """A tiny checkpoint of any causal language model."""
    default = transformers.AutoConfig.for_model(model_type)
    assert all(hasattr(default, name) for name in settings), settings
    config = type(default)(**settings, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return load(folder)


_LLAMA: Final = {
    "hidden_size": 96,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "vocab_size": 261,
}


def _plain(model_type: str, prefix: str, attention: str, mlp: str, names: tuple[str, ...]) -> Roles:
    """Of a model with separate projections: 12 heads of 8 rows, 36 features; `mlp` begins with its dot."""
    *inner, out, up, down = names
    heads, features = per_head(12, 8, 0), per_head(36, 1, 0)
    weights = {f"{prefix}.{attention}.{n}.{p}": heads for n in inner for p in ("weight", "bias")}
    weights |= {f"{prefix}{mlp}.{n}.{p}": features for n in up.split() for p in ("weight", "bias")}
    weights[f"{prefix}.{attention}.{out}.weight"] = columns(heads)
    weights[f"{prefix}{mlp}.{down}.weight"] = columns(features)
    once = (f"{prefix}.{attention}.{out}.bias", f"{prefix}{mlp}.{down}.bias")
    return Roles(model_type=model_type, weights=weights, bias_once=once)


def _without_biases(roles: Roles) -> Roles:
    weights = {name: weight for name, weight in roles.weights.items() if not name.endswith(".bias")}
    return Roles(model_type=roles.model_type, weights=weights)


def _interleaved(model_type: str, prefix: str, attention: str, rows: WeightRoles) -> Roles:
    """Of a model with fused query, key and value, `rows` of them a group."""
    heads, features = per_head(12, 8, 0), per_head(384, 1, 0)
    return Roles(
        model_type=model_type,
        weights={f"{prefix}.{attention}.query_key_value.{p}": rows for p in ("weight", "bias")}
        | {f"{prefix}.mlp.dense_h_to_4h.{p}": features for p in ("weight", "bias")}
        | {
            f"{prefix}.{attention}.dense.weight": columns(heads),
            f"{prefix}.mlp.dense_4h_to_h.weight": columns(features),
        },
        bias_once=(f"{prefix}.{attention}.dense.bias", f"{prefix}.mlp.dense_4h_to_h.bias"),
    )


_NEOX: Final = {name: value for name, value in _LLAMA.items() if name != "intermediate_size"}
_GATED: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj up_proj", "down_proj")
_FUSED: Final = (*_GATED[:4], "gate_up_proj", "down_proj")

#: Model type → settings and roles. The last six have no table in this package.
CASES: Final[dict[str, tuple[dict[str, Any], Roles]]] = {
    # [head, q | k | v, head_dim]: a head's 24 rows lie together.
    "bloom": (
        {"hidden_size": 96, "n_head": 12, "n_layer": 2, "vocab_size": 261},
        _interleaved("bloom", "transformer.h.*", "self_attention", per_head(12, 24, 0)),
    ),
    "gpt_neox": (
        _NEOX | {"intermediate_size": 384},
        _interleaved("gpt_neox", "gpt_neox.layers.*", "attention", per_head(12, 24, 0)),
    ),
    # [q | k | v]: a head's rows lie in three places.
    "mpt": (
        {"d_model": 96, "n_heads": 12, "n_layers": 2, "vocab_size": 261},
        Roles(
            model_type="mpt",
            weights={
                "transformer.blocks.*.attn.Wqkv.weight": per_head(12, 8, 0, 96, 192),
                "transformer.blocks.*.attn.out_proj.weight": columns(per_head(12, 8, 0)),
                "transformer.blocks.*.ffn.up_proj.weight": per_head(384, 1, 0),
                "transformer.blocks.*.ffn.down_proj.weight": columns(per_head(384, 1, 0)),
            },
        ),
    ),
    "cohere": (_LLAMA, _without_biases(_plain("cohere", "model.layers.*", "self_attn", ".mlp", _GATED))),
    "olmo": (_LLAMA, _without_biases(_plain("olmo", "model.layers.*", "self_attn", ".mlp", _GATED))),
    # [gate | up]: a feature's two rows lie apart.
    "glm": (
        _LLAMA | {"num_key_value_heads": 12, "head_dim": 8, "attention_bias": False},
        Roles(
            model_type="glm",
            weights=_without_biases(
                _plain("glm", "model.layers.*", "self_attn", ".mlp", _FUSED)
            ).weights
            | {"model.layers.*.mlp.gate_up_proj.weight": per_head(36, 1, 0, 36)},
        ),
    ),
    "biogpt": (
        _LLAMA,
        _plain(
            "biogpt", "biogpt.layers.*", "self_attn", "",
            ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        ),
    ),
    "gpt_neox_japanese": (
        _NEOX,
        Roles(
            model_type="gpt_neox_japanese",
            weights={
                "gpt_neox_japanese.layers.*.attention.query_key_value.weight": per_head(12, 24, 0),
                "gpt_neox_japanese.layers.*.attention.dense.weight": columns(per_head(12, 8, 0)),
            },
        ),
    ),
}  # fmt: skip


def owners(roles: Roles, name: str, extent: int) -> tuple[int, np.ndarray, int] | None:
    """Dimension, owner of every index (-1: all), number of groups: read off the file, index by index."""
    generic = ".".join("*" if s.isdecimal() else s for s in name.split("."))
    weight = roles.weights.get(generic)
    if weight is None:
        return None
    owner = np.full(extent, -1)
    for group, intervals in enumerate(weight.groups):
        for begin, end in intervals:
            owner[begin:end] = group
    return weight.dim, owner, len(weight.groups)


def oracle(roles: Roles, tensors: Tensors, tp_size: int, tp_rank: int) -> Tensors:
    """What a rank must hold, in numpy on whole tensors."""
    found = {}
    for name, tensor in tensors.items():
        values = tensor.numpy()
        way = None
        for dim in range(values.ndim):
            seen = owners(roles, name, values.shape[dim])
            way = seen if seen is not None and seen[0] == dim else way
        if way is not None:
            dim, owner, num_groups = way
            mine = (owner == -1) | (owner * tp_size // num_groups == tp_rank)
            values = np.compress(mine, values, dim)
        found[name] = torch.from_numpy(values.copy())
    return found
