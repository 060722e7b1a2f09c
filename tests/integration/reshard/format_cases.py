"""Families for every format, and sets as other tools would have written them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fixtures.families import FAMILIES
from reshard.manifest import FILE, KEY

from .variants import HIDDEN, VARIANTS, Tensors, Variant, assert_equal

#: What DeepSpeed's module wants, and 2, 3, 4 and 8 divide.
INTERMEDIATE = 4 * HIDDEN
_KEYS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


def even(name: str, degrees: tuple[int, ...], **settings: Any) -> Variant:
    """The variant with an MLP that every degree divides, at these degrees."""
    variant = VARIANTS[name]
    widths = {key: INTERMEDIATE for key in _KEYS if key in variant.settings}
    return variant._replace(settings=variant.settings | widths | settings, degrees=degrees)


ALL, NOT_EIGHT, NOT_THREE = (2, 3, 4, 8), (2, 3, 4), (2, 4, 8)


CASES: dict[tuple[str, str], Variant] = {
    **{("deepspeed", n): even(n, ALL) for n in ("bloom", "opt", "gptj", "gpt_neo", "gpt_neox")},
    **{
        ("transformers", n): VARIANTS[n]
        for n in (
            "llama", "llama-tied", "mistral-kv12", "mixtral-kv12", "qwen2-kv12", "qwen3", "qwen3_moe-kv12",
            "gemma2-kv12", "gemma3_text", "phi-kv12", "phi-normed", "phi3-kv12", "gpt_neox",
        )
    },
    # A padded vocabulary of 320 is no multiple of 3.
    **{
        ("vllm", n): even(n, NOT_THREE)
        for n in (
            "llama-kv2", "llama-tied", "llama-biased", "mistral-kv2", "qwen2-kv2", "qwen3", "gemma2-kv2",
            "gemma3_text", "phi3-kv2",
        )
    },
    ("megatron", "llama"): even("llama", ALL),
    ("megatron", "llama-tied"): even("llama-tied", (2, 3)),
    **{("megatron", n): even(n, NOT_EIGHT) for n in ("gpt2", "mistral-kv12", "qwen2-kv12", "qwen3")},
}  # fmt: skip


def anonymous(folder: Path) -> Path:
    """The set in `folder` without a word of ours: as another tool would have written it."""
    (folder / FILE).unlink()
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
        assert metadata.pop(KEY)
        save_file(load_file(file), file, metadata=metadata)
    for file in folder.rglob("*.pt"):
        torch.save(plain(torch.load(file, weights_only=False)), file)
    return folder


def plain(value: Any) -> Any:
    return {key: plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def running(folder: Path, variant: Variant) -> Tensors:
    """The tensors of the model that transformers makes of the checkpoint."""
    auto_class = getattr(transformers, FAMILIES[variant.family].auto_class)
    return dict(auto_class.from_pretrained(folder, dtype="auto").state_dict())


def same_tensors(folder: Path, other: Path) -> None:
    names = sorted(str(p.relative_to(other)) for p in other.rglob("*") if p.suffix in (".safetensors", ".pt"))
    assert names
    assert names == sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".safetensors", ".pt")
    )
    for name in names:
        if name.endswith(".safetensors"):
            assert_equal(load_file(folder / name), load_file(other / name), name)
        else:
            found = (flat(torch.load(f / name, weights_only=False)) for f in (folder, other))
            assert_equal(*found, name)


def flat(value: dict[str, Any], prefix: str = "") -> Tensors:
    made: Tensors = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            made |= flat(entry, f"{prefix}{key}.")
        elif isinstance(entry, torch.Tensor):
            made[prefix + str(key)] = entry
    return made
