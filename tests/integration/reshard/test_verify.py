"""A set of any format is proved by reading every byte of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reshard.errors import (
    DamagedFileError,
)
from reshard.job import open_source
from reshard.padding import gaps
from reshard.verification import verify

from .format_cases import CASES, flat
from .variants import HIDDEN, VARIANTS, VOCAB, cut, save

#: One of each format, and what its files hold beside the logical tensors: padding of the vocabulary.
_VERIFIED = [
    ("safetensors", "llama-kv2", 0),
    ("deepspeed", "gptj", 0),
    ("transformers", "mixtral-kv12", 0),
    ("vllm", "phi3-kv2", 2 * (320 - VOCAB) * HIDDEN * 2),
    ("megatron", "qwen2-kv12", 2 * (512 - VOCAB) * HIDDEN * 2),
    ("huggingface", "gpt2", 0),
]


@pytest.mark.parametrize("format_name, name, padded_bytes", _VERIFIED)
def test_a_set_of_any_format_is_proved(format_name: str, name: str, padded_bytes: int, work: Path) -> None:
    variant = CASES.get((format_name, name), VARIANTS[name])
    original = save(variant, work / "hf")
    tp_size = 1 if format_name == "huggingface" else 4
    cut(work / "hf", work / "cut", tp_size, format=format_name, dtype="bfloat16")
    found = verify(str(work / "cut"), memory_bytes=4 << 30)
    assert (found.format, found.tp_size, found.tensors) == (format_name, tp_size, len(original))
    held = sum(
        sum(t.nbytes for t in flat(torch.load(file, weights_only=False)).values())
        if file.suffix == ".pt"
        else sum(t.nbytes for t in load_file(file).values())
        for file in (work / "cut").rglob("*")
        if file.suffix in (".pt", ".safetensors")
    )
    assert found.read_bytes == held
    assert held >= sum(t.numel() * 2 for t in original.values()) + padded_bytes
    # The merged checkpoint, and the same model at another degree, are what it was cut from.
    cut(work / "hf", work / "other", 2)
    for against in ("hf", "other"):
        proved = verify(str(work / "cut"), str(work / against), memory_bytes=4 << 30)
        assert proved.origin_sha256 == found.origin_sha256


@pytest.mark.parametrize("format_name", ["vllm", "megatron"])
def test_padding_is_proved_to_be_zero(format_name: str, work: Path) -> None:
    """No hash covers it, for it belongs to no tensor of the merged checkpoint."""
    save(CASES[format_name, "llama-tied"], work / "hf")
    cut(work / "hf", work / "cut", 2, format=format_name)
    file = max((work / "cut").rglob("*-rank-1-*" if format_name == "vllm" else "mp_rank_01/*.pt"))
    source = open_source(str(work / "cut"))
    mine = [gap for gap in gaps(source) if file.match(f"*{gap.region.file}")]
    source.folder.close()
    assert {gap.tensor for gap in mine} <= {"model.embed_tokens.weight", "embedding.word_embeddings.weight"}
    raw = bytearray(file.read_bytes())
    at = mine[-1].region.offset_bytes + mine[-1].size_bytes - 4
    assert raw[at : at + 4] == bytes(4)
    raw[at] = 1
    file.write_bytes(raw)
    with pytest.raises(DamagedFileError, match=r"the padding of \S+embed\S+ in \S+ is not zero"):
        verify(str(work / "cut"), memory_bytes=4 << 30)
    raw[at] = 0
    file.write_bytes(raw)
    assert verify(str(work / "cut"), memory_bytes=4 << 30).tp_size == 2
