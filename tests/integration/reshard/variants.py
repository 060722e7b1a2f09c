"""Every family's fixture, widened so that degrees 3 and 8 divide its heads."""

from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from fixtures import tiny
from fixtures.families import FAMILIES
from reshard.job import Request
from reshard.run import Report, reshard

Tensors = dict[str, torch.Tensor]

HEADS: Final = 24
HEAD_DIM: Final = 4
HIDDEN: Final = HEADS * HEAD_DIM
#: Neither 3 nor 8 divides it.
INTERMEDIATE: Final = 100
#: Odd, and no multiple of any padding.
VOCAB: Final = 261


class Variant(NamedTuple):
    """A checkpoint of a family.

    Attributes:
        family: a key of the fixtures.
        settings: of its configuration, beside the fixture's.
        kv_heads: key and value heads.
        degrees: those at which it can be cut.
        heads: attention heads.
        head_dim: elements of one.
    """

    family: str
    settings: dict[str, Any]
    kv_heads: int = HEADS
    degrees: tuple[int, ...] = (1, 2, 3, 4, 8)
    heads: int = HEADS
    head_dim: int = HEAD_DIM


_LLAMA: Final = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "vocab_size": VOCAB,
}

_GPT2: Final = {"n_embd": HIDDEN, "n_head": HEADS, "n_inner": INTERMEDIATE, "vocab_size": VOCAB}

_FALCON: Final = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": INTERMEDIATE,
    "vocab_size": VOCAB,
}

_T5: Final = {
    "d_model": HIDDEN,
    "d_kv": HEAD_DIM,
    "d_ff": INTERMEDIATE,
    "num_heads": HEADS,
    "vocab_size": VOCAB,
}

_OPT: Final = {
    "hidden_size": HIDDEN,
    "ffn_dim": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "vocab_size": VOCAB,
}

#: Two KV heads are repeated on four and eight ranks; twelve can be shared out over three.
_KV: Final = {2: (1, 2, 4, 8), 12: (1, 2, 3, 4)}


def _grouped(family: str, **settings: Any) -> dict[str, Variant]:
    return {
        f"{family}-kv{kv}": Variant(family, _LLAMA | {"num_key_value_heads": kv} | settings, kv, degrees)
        for kv, degrees in _KV.items()
    }


VARIANTS: Final[dict[str, Variant]] = {
    "bert": Variant("bert", _LLAMA),
    "bloom": Variant("bloom", {"hidden_size": HIDDEN, "n_head": HEADS, "vocab_size": VOCAB}),
    # Four blocks of heads at any degree: eight ranks need 32 heads, three need 12.
    "codegen": Variant(
        "codegen",
        {"n_embd": 192, "n_head": 96, "n_inner": INTERMEDIATE, "rotary_dim": 2, "vocab_size": VOCAB},
        kv_heads=96,
        heads=96,
        head_dim=2,
    ),
    "falcon-multi-query": Variant("falcon-multi-query", _FALCON, kv_heads=1),
    "falcon-multi-head": Variant("falcon-multi-head", _FALCON),
    "falcon-grouped-kv2": Variant("falcon-grouped", _FALCON | {"num_kv_heads": 2}, 2, _KV[2]),
    "falcon-grouped-kv12": Variant("falcon-grouped", _FALCON | {"num_kv_heads": 12}, 12, _KV[12]),
    **_grouped("gemma2", head_dim=HEAD_DIM),
    "gemma3_text": Variant("gemma3_text", _LLAMA | {"num_key_value_heads": 24, "head_dim": HEAD_DIM}),
    "gpt2": Variant("gpt2", _GPT2),
    "gpt2-untied": Variant("gpt2", _GPT2 | {"tie_word_embeddings": False}),
    "gpt_bigcode": Variant("gpt_bigcode", _GPT2, kv_heads=1),
    "gpt_bigcode-multi-head": Variant("gpt_bigcode", _GPT2 | {"multi_query": False}),
    "gpt_neo": Variant(
        "gpt_neo",
        {
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_heads": HEADS,
            "vocab_size": VOCAB,
        },
    ),
    "gpt_neox": Variant("gpt_neox", _LLAMA),
    "gpt_neox-tied": Variant("gpt_neox", _LLAMA | {"tie_word_embeddings": True}),
    "gptj": Variant("gptj", _GPT2 | {"rotary_dim": 4}),
    **_grouped("llama"),
    "llama": Variant("llama", _LLAMA | {"num_key_value_heads": 24}),
    "llama-tied": Variant("llama", _LLAMA | {"num_key_value_heads": 24, "tie_word_embeddings": True}),
    "llama-biased": Variant(
        "llama", _LLAMA | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}, 2, _KV[2]
    ),
    **_grouped("mistral"),
    **_grouped("mixtral"),
    "mpt": Variant("mpt", {"d_model": HIDDEN, "n_heads": HEADS, "vocab_size": VOCAB}),
    "opt": Variant("opt", _OPT | {"word_embed_proj_dim": HIDDEN}),
    "opt-projected": Variant("opt-projected", _OPT),
    **_grouped("phi"),
    "phi-normed": Variant("phi", _LLAMA | {"num_key_value_heads": 24, "qk_layernorm": True}),
    **_grouped("phi3"),
    **_grouped("qwen2"),
    # Heads wider than hidden / heads.
    "qwen3": Variant("qwen3", _LLAMA | {"num_key_value_heads": 24, "head_dim": 8}, head_dim=8),
    **_grouped("qwen3_moe", moe_intermediate_size=20, mlp_only_layers=[0]),
    **_grouped("stablelm"),
    "t5": Variant("t5", _T5),
    "t5-untied-plain": Variant("t5", _T5 | {"tie_word_embeddings": False, "feed_forward_proj": "relu"}),
}


def save(variant: Variant, folder: Path, *, max_shard_size: str = "50GB") -> Tensors:
    """Write the variant's checkpoint into `folder`; its tensors."""
    spec = FAMILIES[variant.family]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, variant.family, spec._replace(settings=spec.settings | variant.settings))
        tiny.build(variant.family).save_pretrained(folder, max_shard_size=max_shard_size)
    return load(folder)


def cut(source: Path, output: Path, *degrees: int, **options: Any) -> Report:
    """Reshard with room for whatever else this process has loaded; `options` are of `Request`."""
    settings = {"memory_bytes": 4 << 30, "jobs": 2} | options
    return reshard(Request(source=str(source), output=output, degrees=degrees, **settings))


def load(folder: Path, pattern: str = "*.safetensors") -> Tensors:
    """All tensors of the safetensors files in `folder` that match."""
    files = sorted(folder.glob(pattern))
    assert files, f"no {pattern} in {folder}"
    tensors: Tensors = {}
    for file in files:
        held = load_file(file)
        assert not set(held) & set(tensors)
        tensors |= held
    return tensors


def assert_equal(found: Tensors, expected: Tensors, what: str = "") -> None:
    """Names, dtypes, shapes and bits."""
    assert set(found) == set(expected), what
    for name, tensor in expected.items():
        have = found[name]
        assert have.dtype == tensor.dtype, f"{what} {name}"
        assert have.shape == tensor.shape, f"{what} {name}"
        assert torch.equal(have, tensor), f"{what} {name}"
