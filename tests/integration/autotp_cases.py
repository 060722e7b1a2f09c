"""The checkpoints that AutoTP's loader must take, and the shards that it must refuse, each rank's apart."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fixtures import tiny
from fixtures.families import FAMILIES
from reshard.job import Request
from reshard.manifest import KEY, decode, encode
from reshard.run import reshard

Tensors = dict[str, torch.Tensor]


class Case(NamedTuple):
    """A checkpoint that AutoTP takes.

    Attributes:
        family: a key of the fixtures.
        settings: of its configuration, beside the fixture's.
        rewrite: makes of the saved tensors what another release, or another saver, has in its files.
        max_shard_bytes: a rank's files are closed before they exceed it.
    """

    family: str
    settings: dict[str, Any] = {}
    rewrite: Callable[[Tensors], Tensors] | None = None
    max_shard_bytes: int = 10**9


def bare(tensors: Tensors) -> Tensors:
    """As of the model without its head, which has no prefix."""
    return {name.split(".", 1)[1]: tensor for name, tensor in tensors.items()}


def with_masks(tensors: Tensors) -> Tensors:
    """With the causal masks that were saved once, beside every query projection, and the rotary tables."""
    more: Tensors = {}
    for name in tensors:
        attention = name.partition(".q_proj.")[0]
        if attention != name:
            more[f"{attention}.bias"] = torch.tril(torch.ones(128, 128, dtype=torch.uint8))[None, None]
            more[f"{attention}.masked_bias"] = torch.tensor(-1e9)
    return tensors | more


def with_tables(tensors: Tensors) -> Tensors:
    """In half precision, with the rotary tables that were saved once."""
    tables = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    return {name: tensor.half() for name, tensor in tensors.items()} | tables


def with_copies(tensors: Tensors) -> Tensors:
    """Everything tied saved under each of its names."""
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    return tensors | {name: tensors["shared.weight"].clone() for name in names}


_PLAIN: Final = (
    "bert bloom falcon-grouped gemma2 gemma3_text gpt_bigcode gpt_neo gpt_neox gptj llama mistral mpt opt "
    "opt-projected phi phi3 qwen2 qwen3 stablelm t5"
)
#: Two KV heads on four ranks are copied.
CASES: Final = {family: Case(family) for family in _PLAIN.split()} | {
    "llama-tied": Case("llama", {"tie_word_embeddings": True}),
    "t5-untied": Case("t5", {"tie_word_embeddings": False}),
    # Four blocks of heads, and each is cut.
    "codegen": Case("codegen", {"n_head": 16, "rotary_dim": 4}),
    "llama-in-parts": Case("llama", max_shard_bytes=60_000),
    "bloom-bare": Case("bloom", rewrite=bare),
    "opt-bare": Case("opt", rewrite=bare),
    "gptj-with-masks": Case("gptj", rewrite=with_masks),
    "gpt_neo-with-masks": Case("gpt_neo", rewrite=with_masks),
    "llama-with-tables": Case("llama", rewrite=with_tables),
    "t5-with-copies": Case("t5", rewrite=with_copies),
}
#: What must be refused → the class of the error, and a part of its message.
REFUSED = {
    "wrong-degree": ("InconsistentShardsError", "but the number of processes is"),
    "missing-shard": ("MissingFileError", "lacks the shard of rank 1"),
    "missing-part": ("MissingFileError", "lacks model-rank-01-of-"),
    "renamed-shard": ("InconsistentShardsError", "was written for rank 0"),
    "other-weights": ("InconsistentShardsError", "cut one checkpoint for all ranks"),
    "other-cut": ("InconsistentShardsError", "is not cut as AutoTP cuts this model"),
    "lost-tensor": ("InconsistentShardsError", "lacks model.norm.weight"),
    "surplus-tensor": ("InconsistentShardsError", "holds model.extra.weight"),
    "truncated": ("DamagedFileError", "truncated"),
    "quantized": ("UnsupportedSourceError", "holds quantized weights"),
    "no-manifest": ("DamagedFileError", "has no manifest"),
    "gpt2": ("UnsupportedTargetError", "cannot run gpt2"),
    "falcon-multi-query": ("UnsupportedTargetError", "cannot run falcon"),
    "mixtral": ("UnsupportedTargetError", "transformers' own tensor parallelism"),
}


def save(case: Case, folder: Path, *, seed: int = 0) -> Path:
    """The case's checkpoint, in `folder`."""
    spec = FAMILIES[case.family]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, case.family, spec._replace(settings=spec.settings | case.settings))
        tiny.save(case.family, folder, seed=seed)
    if case.rewrite:
        file = folder / "model.safetensors"
        tensors = case.rewrite(load_file(file))
        save_file({n: t.contiguous() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    return folder


def cut(checkpoint: Path, tp_size: int, work: Path, max_shard_bytes: int = 10**9) -> list[Path]:
    """A folder per rank, with nothing in it but what that rank needs."""
    whole = work / "whole"
    request = Request(
        source=str(checkpoint), output=whole, degrees=(tp_size,), max_shard_bytes=max_shard_bytes
    )
    reshard(request)
    folders = [work / f"rank-{rank}" for rank in range(tp_size)]
    for rank, folder in enumerate(folders):
        folder.mkdir()
        for shard in whole.glob(f"model-rank-{rank:02d}-of-*.safetensors"):
            shard.rename(folder / shard.name)
        for name in ("config.json", "generation_config.json"):
            if (whole / name).exists():
                shutil.copy(whole / name, folder)
    shutil.rmtree(whole)
    return folders


def spoil(kind: str, tp_size: int, work: Path) -> list[Path]:
    """Folders that the ranks must refuse; those that are spoilt are so at rank 1."""
    if kind in FAMILIES:
        return cut(save(Case(kind), work / "hf"), tp_size, work)
    llama = save(Case("llama"), work / "hf")
    if kind == "wrong-degree":
        return (cut(llama, 6 - tp_size, work) * tp_size)[:tp_size]
    folders = cut(llama, tp_size, work, max_shard_bytes=60_000 if kind == "missing-part" else 10**9)
    file = min(folders[1].glob("*.safetensors"))
    neighbour = min(folders[0].glob("*.safetensors"))
    if kind == "missing-shard":
        shutil.copy(neighbour, folders[1])
        file.unlink()
    elif kind == "missing-part":
        file.unlink()
    elif kind == "renamed-shard":
        shutil.copy(neighbour, file)
    elif kind == "other-weights":
        other = work / "other"
        other.mkdir()
        shutil.copy(cut(save(Case("llama"), other / "hf", seed=1), tp_size, other)[1] / file.name, file)
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        rewrite(file, kind)
    return folders


def rewrite(file: Path, kind: str) -> None:
    tensors = load_file(file)
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    if kind == "other-cut":
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = tensors[name].T.contiguous()
    elif kind == "lost-tensor":
        del tensors["model.norm.weight"]
    elif kind == "surplus-tensor":
        tensors["model.extra.weight"] = torch.ones(8)
    elif kind == "quantized":
        account = msgspec.structs.replace(decode(metadata[KEY], file.name), recipe={"quant_method": "int8"})
        metadata[KEY] = encode(account)
    else:
        assert kind == "no-manifest"
        metadata = {"format": "pt"}
    save_file(tensors, file, metadata=metadata)
