"""Every format written and read back, by its manifest and as a stranger's; what it holds, by plain torch."""

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fixtures.families import FAMILIES
from reshard.errors import (
    CannotSplitError,
    CheckpointError,
    DamagedFileError,
    InconsistentShardsError,
    UnsupportedTargetError,
)
from reshard.formats.registry import targets
from reshard.job import open_source
from reshard.manifest import FILE, KEY
from reshard.padding import gaps
from reshard.verify import verify

from .variants import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    VARIANTS,
    VOCAB,
    Tensors,
    Variant,
    assert_equal,
    cut,
    load,
    rank_shard,
    save,
)

#: What DeepSpeed's module wants, and 2, 3, 4 and 8 divide.
_INTERMEDIATE = 4 * HIDDEN
_KEYS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


def even(name: str, degrees: tuple[int, ...], **settings: Any) -> Variant:
    """The variant with an MLP that every degree divides, at these degrees."""
    variant = VARIANTS[name]
    widths = {key: _INTERMEDIATE for key in _KEYS if key in variant.settings}
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


@pytest.mark.parametrize("name", [name for kind, name in CASES if kind == "transformers"])
def test_distributed_shards_are_boxes_of_the_running_model(name: str, work: Path) -> None:
    variant = CASES["transformers", name]
    save(variant, work / "hf")
    expected = running(work / "hf", variant)
    cut(work / "hf", work / "cut", *variant.degrees, format="transformers")
    for tp_size in variant.degrees:
        filled = {n: torch.full_like(t, torch.nan) for n, t in expected.items()}
        count = dict.fromkeys(expected, 0)
        shards = sorted((work / "cut" / f"tp{tp_size}").glob("shard-*.safetensors"))
        assert [s.name for s in shards] == [
            f"shard-{rank:05d}-model-00001-of-00001.safetensors" for rank in range(1, tp_size + 1)
        ]
        for shard in shards:
            with safe_open(shard, framework="pt") as stream:
                metadata = stream.metadata()
            assert (metadata["format"], metadata["DCP_VERSION"]) == ("pt", "1.0")
            offsets = json.loads(metadata["DCP_SHARDING_INFO"])
            for key, tensor in load_file(shard).items():
                at = offsets[key]["saved_offsets"]
                box = tuple(slice(a, a + n) for a, n in zip(at, tensor.shape, strict=True))
                filled[key][box] = tensor
                count[key] += tensor.numel()
        assert_equal(filled, expected, f"tp{tp_size}")
        # Nothing is stored twice, and every rank has something of every Linear in the blocks.
        assert count == {n: t.numel() for n, t in expected.items()}


def heads_of(tensor: torch.Tensor, heads: int, tp_size: int, rank: int) -> torch.Tensor:
    """A rank's heads; one of fewer heads than ranks."""
    parts = tensor.unflatten(0, (heads, -1))
    if heads < tp_size:
        return parts[rank // (tp_size // heads)]
    return parts.chunk(tp_size)[rank].flatten(0, 1)


def vllm_rank(
    variant: Variant, original: Tensors, tp_size: int, rank: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """What rank `rank` of vLLM's own model holds."""
    query = variant.heads * variant.head_dim
    rows = variant.kv_heads * variant.head_dim
    separate = dict(original)
    for name, tensor in original.items():
        if ".qkv_proj." in name:
            parts = tensor.split([query, rows, rows])
            separate |= {name.replace("qkv", p): t for p, t in zip("qkv", parts, strict=True)}
            del separate[name]
        elif ".gate_up_proj." in name:
            halves = tensor.chunk(2)
            separate |= {name.replace("gate_up", p): t for p, t in zip(("gate", "up"), halves, strict=True)}
            del separate[name]
    for name, tensor in separate.items():
        if ".q_proj." in name:
            others = [
                heads_of(separate[name.replace("q_", p)], variant.kv_heads, tp_size, rank)
                for p in ("k_", "v_")
            ]
            mine = heads_of(tensor, variant.heads, tp_size, rank)
            yield name.replace("q_proj", "qkv_proj"), torch.cat([mine, *others])
        elif ".gate_proj." in name:
            up = separate[name.replace("gate", "up")]
            both = [t.chunk(tp_size)[rank] for t in (tensor, up)]
            yield name.replace("gate_proj", "gate_up_proj"), torch.cat(both)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            yield name, tensor.chunk(tp_size, 1)[rank]
        elif name.startswith(("lm_head", "model.embed_tokens")):
            padded = torch.zeros(320, tensor.shape[1])
            padded[:VOCAB] = tensor
            yield name, padded.chunk(tp_size)[rank]
        elif not any(f".{p}_proj." in name for p in ("k", "v", "up")):
            yield name, tensor


@pytest.mark.parametrize("name", [name for kind, name in CASES if kind == "vllm"])
def test_sharded_state_is_vllms_own(name: str, work: Path) -> None:
    variant = CASES["vllm", name]
    original = save(variant, work / "hf")
    cut(work / "hf", work / "cut", *variant.degrees, format="vllm")
    for tp_size in variant.degrees:
        folder = work / "cut" / f"tp{tp_size}"
        assert {f.name for f in folder.glob("*.safetensors")} == {
            f"model-rank-{rank}-part-0.safetensors" for rank in range(tp_size)
        }
        for rank in range(tp_size):
            found = load(folder, f"model-rank-{rank}-part-*")
            assert_equal(found, dict(vllm_rank(variant, original, tp_size, rank)), f"tp{tp_size} rank {rank}")


#: Layer prefix; then the modules of norms, attention output, MLP up and down, and the query with `{}` for q.
_INJECTED = {
    "gptj": ("transformer.h.", "ln_1", None, "attn.out_proj", "mlp.fc_in", "mlp.fc_out", "attn.{}_proj"),
    "gpt_neo": (
        "transformer.h.", "ln_1", "ln_2", "attn.attention.out_proj", "mlp.c_fc", "mlp.c_proj",
        "attn.attention.{}_proj",
    ),
    "gpt_neox": (
        "gpt_neox.layers.", "input_layernorm", "post_attention_layernorm", "attention.dense",
        "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", None,
    ),
}  # fmt: skip


def injected(name: str, original: Tensors, tp_size: int, rank: int) -> Tensors:
    """What DeepSpeed's modules hold on a rank: `[in, out]` weights, `[q | k | v]` of the rank's heads."""
    prefix, norm, second, output, up, down, query = _INJECTED[name]
    made: Tensors = {}
    for layer in range(2):
        old, new = f"{prefix}{layer}.", f"{prefix}{layer}."
        for param, short in (("weight", "w"), ("bias", "b")):

            def of(module: str, old: str = old, param: str = param) -> torch.Tensor | None:
                return original.get(f"{old}{module}.{param}")

            def add(key: str, tensor: torch.Tensor | None, new: str = new, short: str = short) -> None:
                if tensor is not None:
                    made[f"{new}{key}{short}"] = tensor.T if tensor.dim() == 2 else tensor

            add("norm_", of(norm))
            if second:
                add("mlp.attn_n", of(second))
            dim = 1 if param == "weight" else None
            for key, module in (("attention.attn_o", output), ("mlp.output_", down)):
                tensor = of(module)
                add(key, tensor if tensor is None or dim is None else tensor.chunk(tp_size, dim)[rank])
            wide = of(up)
            add("mlp.inter_", None if wide is None else wide.chunk(tp_size)[rank])
            if query:
                parts = [of(query.format(p)) for p in "qkv"]
            else:
                rows = of("attention.query_key_value")
                assert rows is not None
                parts = [p.flatten(0, 1) for p in rows.unflatten(0, (HEADS, 3, HEAD_DIM)).unbind(1)]
            if parts[0] is not None:
                add("attention.attn_qkv", torch.cat([p.chunk(tp_size)[rank] for p in parts if p is not None]))
    return made


@pytest.mark.parametrize("name", _INJECTED)
def test_pre_shards_are_what_deepspeeds_modules_hold(name: str, work: Path) -> None:
    variant = CASES["deepspeed", name]
    original = save(variant, work / "hf")
    outside = {n: t for n, t in original.items() if not n.startswith(_INJECTED[name][0])}
    cut(work / "hf", work / "cut", 2, 8, format="deepspeed", dtype="float16")
    for tp_size in (2, 8):
        folder = work / "cut" / f"tp{tp_size}"
        config = json.loads((folder / "ds_inference_config.json").read_text())
        assert (config["type"], config["tp_size"], config["dtype"]) == ("ds_model", tp_size, "float16")
        assert "base_dir" not in config
        shared = torch.load(folder / config["checkpoints"]["non_tp"][0], weights_only=True)
        # GPT-J's is what DeepSpeed leaves empty; GPT-Neo's head is the embedding and looked for by name.
        head = {"lm_head.weight": original["transformer.wte.weight"]} if name == "gpt_neo" else {}
        renamed = {
            n.replace("lm_head", "embed_out") if name == "gpt_neox" else n: t for n, t in outside.items()
        }
        assert_equal(shared, {n: t.half() for n, t in (renamed | head).items()}, "non-tp")
        for rank in range(tp_size):
            found: Tensors = {}
            for file in config["checkpoints"]["tp"][rank::tp_size]:
                found |= torch.load(folder / file, weights_only=True)
            expected = {n: t.half() for n, t in injected(name, original, tp_size, rank).items()}
            assert_equal(found, expected, f"tp{tp_size} rank {rank}")


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
    mine = [gap for gap in gaps(source) if file.match(f"*{gap.piece.file}")]
    source.folder.close()
    assert {gap.tensor for gap in mine} <= {"model.embed_tokens.weight", "embedding.word_embeddings.weight"}
    raw = bytearray(file.read_bytes())
    at = mine[-1].piece.offset_bytes + mine[-1].size_bytes - 4
    assert raw[at : at + 4] == bytes(4)
    raw[at] = 1
    file.write_bytes(raw)
    with pytest.raises(DamagedFileError, match=r"the padding of \S+embed\S+ in \S+ is not zero"):
        verify(str(work / "cut"), memory_bytes=4 << 30)
    raw[at] = 0
    file.write_bytes(raw)
    assert verify(str(work / "cut"), memory_bytes=4 << 30).tp_size == 2


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


@pytest.mark.parametrize("name", ["mixtral-kv12", "qwen3_moe-kv12"])
def test_experts_are_numbered_not_sorted_by_name(name: str, work: Path) -> None:
    """Twelve of them: 10 comes after 9. And the stacked form is cut unevenly in each half of gate and up."""
    variant = VARIANTS[name]
    count = "num_local_experts" if name.startswith("mixtral") else "num_experts"
    original = save(variant._replace(settings=variant.settings | {count: 12}), work / "hf")
    expected = running(work / "hf", variant)
    cut(work / "hf", work / "shards", 4, format="transformers")
    cut(work / "shards", work / "merged", 1, format="huggingface")
    assert_equal(load(work / "merged"), original)
    cut(anonymous(work / "shards"), work / "stacked", 3)
    for rank in range(3):
        mine = load(work / "stacked", f"*-rank-{rank:02d}-*")
        for name, tensor in expected.items():
            if name.endswith("experts.gate_up_proj"):
                halves = [half.tensor_split(3, 1)[rank] for half in tensor.chunk(2, 1)]
                assert torch.equal(mine[name], torch.cat(halves, 1))
            elif name.endswith("experts.down_proj"):
                assert torch.equal(mine[name], tensor.tensor_split(3, 2)[rank])
    cut(work / "stacked", work / "again", 1, format="huggingface")
    assert_equal(load(work / "again"), expected)
