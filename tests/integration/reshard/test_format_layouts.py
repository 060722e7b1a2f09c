"""What the files of each format hold, by plain torch and by the running model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from .format_cases import (
    CASES,
    anonymous,
    running,
)
from .variants import (
    HEAD_DIM,
    HEADS,
    VARIANTS,
    VOCAB,
    Tensors,
    Variant,
    assert_equal,
    cut,
    load,
    save,
)


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
