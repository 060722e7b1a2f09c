"""Every format written and read back, by its manifest and as a stranger's, in chains, and refused."""

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reshard.errors import (
    CannotSplitError,
    CheckpointError,
    InconsistentShardsError,
    UnsupportedTargetError,
)
from reshard.formats.registry import targets
from reshard.manifest import FILE

from .format_cases import ALL, CASES, NOT_THREE, anonymous, even, running, same_tensors
from .variants import VARIANTS, assert_equal, cut, load, save


def test_every_format_is_here() -> None:
    assert {name for name, _ in CASES} | {"safetensors", "huggingface"} == set(targets())


@pytest.mark.parametrize("format_name, name", CASES)
def test_read_back_by_manifest_and_as_a_strangers(format_name: str, name: str, work: Path) -> None:
    variant = CASES[format_name, name]
    original = save(variant, work / "hf")
    degrees = tuple(n for n in variant.degrees if n > 1)
    cut(work / "hf", work / "cut", *degrees, format=format_name)
    for tp_size in degrees:
        folder = work / "cut" / f"tp{tp_size}"
        cut(folder, work / f"merged{tp_size}", 1, format="huggingface")
        assert_equal(load(work / f"merged{tp_size}"), original, f"tp{tp_size}")
        expected = running(work / "hf", variant) if format_name == "transformers" else original
        cut(anonymous(folder), work / f"stranger{tp_size}", 1, format="huggingface")
        assert_equal(load(work / f"stranger{tp_size}"), expected, f"a stranger's tp{tp_size}")


@pytest.mark.parametrize(
    "name, chain",
    [
        (
            "llama",
            [
                ("safetensors", 4), ("vllm", 2), ("transformers", 4), ("megatron", 3), ("safetensors", 8),
                ("megatron", 8), ("vllm", 8), ("safetensors", 3), ("transformers", 8), ("safetensors", 2),
            ],
        ),
        ("opt", [("deepspeed", 2), ("safetensors", 8), ("deepspeed", 3), ("deepspeed", 8)]),
        ("gpt_neox", [("transformers", 3), ("deepspeed", 4), ("safetensors", 8), ("transformers", 2)]),
        ("gpt2", [("megatron", 4), ("safetensors", 3), ("megatron", 2)]),
        ("phi3-kv2", [("vllm", 8), ("transformers", 2), ("safetensors", 4), ("vllm", 2)]),
        ("mixtral-kv12", [("transformers", 4), ("safetensors", 3), ("transformers", 3)]),
    ],
)  # fmt: skip
def test_from_format_to_format_and_degree_to_degree(
    name: str, chain: list[tuple[str, int]], work: Path
) -> None:
    original = save(even(name, ALL), work / "hf")
    source = work / "hf"
    for number, (format_name, tp_size) in enumerate(chain):
        output = work / f"{number}-{format_name}"
        first = cut(source, output, tp_size, format=format_name)
        direct = work / f"{number}-direct"
        # The same files come out of the merged checkpoint, whatever lies between.
        assert cut(work / "hf", direct, tp_size, format=format_name).sha256 == first.sha256
        same_tensors(output, direct)
        source = output
    cut(source, work / "merged", 1, format="huggingface")
    assert_equal(load(work / "merged"), original)


@pytest.mark.parametrize(
    "name, format_name, tp_size, kind, message",
    [
        (
            "llama",
            "safetensors",
            5,
            CannotSplitError,
            "24 key/value heads; degrees that work: 1, 2, 3, 4, 6, 8",
        ),
        ("llama-kv2", "safetensors", 3, CannotSplitError, "24 query and 2 key/value heads"),
        ("t5", "safetensors", 7, CannotSplitError, "would cut attention heads: this t5"),
        ("codegen", "safetensors", 16, CannotSplitError, "6 query heads on a rank do not fill the 4 blocks"),
        ("llama-kv2", "transformers", 4, CannotSplitError, "does not replicate KV heads"),
        ("bloom", "transformers", 2, UnsupportedTargetError, "no tensor-parallel plan for 'bloom'"),
        (
            "llama",
            "deepspeed",
            2,
            UnsupportedTargetError,
            "cannot load 'llama' from pre-shards; it can bloom",
        ),
        ("gptj", "deepspeed", 2, UnsupportedTargetError, "has 100 rows; DeepSpeed's module takes 4 × hidden"),
        ("opt-projected", "deepspeed", 2, UnsupportedTargetError, "ignores do_layer_norm_before"),
        ("bloom", "deepspeed", 5, CannotSplitError, "24 query and 24 key/value heads"),
        ("llama-kv2", "vllm", 3, CannotSplitError, "24 query and 2 key/value heads"),
        ("llama", "vllm", 3, CannotSplitError, "pads 261 tokens to 320, which tp_size=3 does not divide"),
        ("llama", "vllm", 8, CannotSplitError, "100 features cannot be shared out over tp_size=8"),
        ("mixtral-kv2", "vllm", 2, UnsupportedTargetError, "dense models only"),
        ("bloom", "megatron", 2, UnsupportedTargetError, "not for 'bloom'"),
        ("llama-kv2", "megatron", 4, CannotSplitError, "degrees that work: 1, 2"),
        ("llama", "no-format", 2, UnsupportedTargetError, "there are safetensors, deepspeed, transformers"),
    ],
)
def test_refusals_say_what_would_work(
    name: str, format_name: str, tp_size: int, kind: type[CheckpointError], message: str, work: Path
) -> None:
    save(VARIANTS[name], work / "hf")
    with pytest.raises(kind) as caught:
        cut(work / "hf", work / "cut", tp_size, format=format_name)
    assert message in str(caught.value)
    assert sorted(p.name for p in work.iterdir()) == ["hf"]


@pytest.mark.parametrize("format_name, tp_size", [("safetensors", 4), ("vllm", 4)])
def test_copies_of_kv_heads_must_agree(format_name: str, tp_size: int, work: Path) -> None:
    """Two heads on four ranks: what ranks 0 and 1 share is compared when they are merged."""
    save(even("llama-kv2", NOT_THREE), work / "hf")
    folder = work / "cut"
    cut(work / "hf", folder, tp_size, format=format_name)
    anonymous_file = sorted(folder.glob("*.safetensors"))[1]
    with safe_open(anonymous_file, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(anonymous_file)
    name = next(n for n in tensors if "k_proj" in n or "qkv_proj" in n)
    # The last row is a key's or a value's, which rank 0 holds as well.
    tensors[name][-1, 0] += 1
    save_file(tensors, anonymous_file, metadata=metadata)
    with pytest.raises(InconsistentShardsError, match="has other values of"):
        cut(folder, work / "merged", 1, format="huggingface")
    assert not (work / "merged").exists()


def test_shards_without_their_manifest_are_not_guessed_at(work: Path) -> None:
    save(VARIANTS["llama"], work / "hf")
    cut(work / "hf", work / "cut", 2)
    (work / "cut" / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"reshard\.json"):
        cut(work / "cut", work / "merged", 1, format="huggingface")
