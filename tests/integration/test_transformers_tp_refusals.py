"""What the loader of transformers' distributed shards refuses, each in a sentence.

All of it is found in the headers, before any process talks to another: one process is enough.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reshard.errors import (
    CannotSplitError,
    DamagedFileError,
    InconsistentShardsError,
    MissingFileError,
    UnsupportedTargetError,
)
from reshard.loaders.transformers_tp import load_transformers_tp
from tests.integration.transformers_tp_shards import cut, save, shard


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families' shards at degrees 2 and 4."""
    root = tmp_path_factory.mktemp("transformers-tp-refusals")
    for family in ("llama", "gpt_neox"):
        plain = save(family, root / "plain" / family)
        for tp_size in (2, 4):
            cut(plain, tp_size, root / f"{family}-tp{tp_size}")
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A Llama's four shards, to be damaged."""
    return Path(shutil.copytree(root / "llama-tp4", tmp_path / "copy"))


@pytest.fixture
def bare(copy: Path) -> Path:
    """The same without manifests, as transformers writes them."""
    for file in copy.glob("shard-*"):
        rewrite_shard(file, load_file(file), keep_manifest=False)
    return copy


def rewrite_shard(file: Path, tensors: dict[str, torch.Tensor], *, keep_manifest: bool = True) -> None:
    """Write `tensors` in place of a shard's, those that it did not have as beginning at zero."""
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    offsets = json.loads(metadata["DCP_SHARDING_INFO"])
    offsets = {name: offsets.get(name, {"saved_offsets": [0] * tensors[name].dim()}) for name in tensors}
    metadata["DCP_SHARDING_INFO"] = json.dumps(offsets)
    if not keep_manifest:
        del metadata["reshard"]
    save_file(tensors, file, metadata)


def refused(folder: Path, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        load_transformers_tp(folder, reshard_on_load=True)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_gap_in_the_set_is_named(copy: Path, number: int) -> None:
    (copy / shard(number)).unlink()
    refused(copy, MissingFileError, f"lacks {shard(number)}")


def test_a_last_shard_that_is_missing_is_in_the_manifest(copy: Path) -> None:
    (copy / shard(4)).unlink()
    refused(copy, MissingFileError, f"was cut for tp_size=4 and lacks {shard(4)}")


def test_without_a_manifest_a_last_shard_that_is_missing_leaves_tensors_incomplete(bare: Path) -> None:
    (bare / shard(4)).unlink()
    refused(
        bare, InconsistentShardsError, "the shards hold 12672 of its 16896 elements; one of them is missing"
    )


def test_no_shards_and_no_configuration(root: Path, copy: Path) -> None:
    (copy / "config.json").unlink()
    refused(copy, MissingFileError, "no config.json")
    refused(root / "plain" / "llama", MissingFileError, f"no {shard(1)}")


def test_another_safetensors_file_would_be_read_too(root: Path, copy: Path) -> None:
    shutil.copy(root / "plain" / "gpt_neox" / "model.safetensors", copy)
    refused(copy, InconsistentShardsError, "holds model.safetensors beside the shards")


def test_a_shard_of_another_model(root: Path, copy: Path) -> None:
    shutil.copy(root / "gpt_neox-tp4" / shard(2), copy)
    refused(copy, InconsistentShardsError, "is of llama (")
    refused(copy, InconsistentShardsError, f"and {shard(2)} is of gpt_neox (")


def test_a_shard_of_another_degree(root: Path, copy: Path) -> None:
    shutil.copy(root / "llama-tp2" / shard(2), copy)
    refused(copy, InconsistentShardsError, f"at tp_size=4, and {shard(2)} is of llama (")


def test_a_shard_without_a_manifest_among_others(copy: Path) -> None:
    rewrite_shard(copy / shard(2), load_file(copy / shard(2)), keep_manifest=False)
    refused(copy, InconsistentShardsError, f"{shard(2)} is without a manifest")


def test_shards_with_each_other_s_names(copy: Path) -> None:
    (copy / shard(2)).rename(copy / "other")
    (copy / shard(3)).rename(copy / shard(2))
    (copy / "other").rename(copy / shard(3))
    refused(
        copy, InconsistentShardsError, f"{shard(2)} is named as rank 1's and says inside that it is rank 2's"
    )


def test_without_manifests_shards_that_overlap(root: Path, bare: Path) -> None:
    file = shutil.copy(root / "llama-tp2" / shard(2), bare)
    rewrite_shard(file, load_file(file), keep_manifest=False)
    refused(bare, InconsistentShardsError, "both hold some of it")


def test_without_manifests_a_shard_of_another_model(root: Path, bare: Path) -> None:
    file = shutil.copy(root / "gpt_neox-tp4" / shard(2), bare)
    rewrite_shard(file, load_file(file), keep_manifest=False)
    refused(bare, InconsistentShardsError, "hold gpt_neox.layers.0.attention.dense.weight")


def test_a_truncated_shard(copy: Path) -> None:
    data = (copy / shard(3)).read_bytes()
    (copy / shard(3)).write_bytes(data[:-8])
    refused(copy, DamagedFileError, f"{shard(3)} is truncated or damaged")


@pytest.mark.parametrize(
    "rewrite, words",
    [
        (lambda info: info.pop("lm_head.weight"), "KeyError('lm_head.weight')"),
        (lambda info: info["lm_head.weight"].update(saved_offsets=[0]), "the offsets (0,)"),
        (lambda info: info["lm_head.weight"].update(saved_offsets=[-66, 0]), "the offsets (-66, 0)"),
    ],
)
def test_offsets_that_are_missing_or_make_no_sense(copy: Path, rewrite: Any, words: str) -> None:
    with safe_open(copy / shard(2), framework="pt") as stream:
        metadata = stream.metadata()
    offsets = json.loads(metadata["DCP_SHARDING_INFO"])
    rewrite(offsets)
    save_file(
        load_file(copy / shard(2)), copy / shard(2), metadata | {"DCP_SHARDING_INFO": json.dumps(offsets)}
    )
    refused(copy, DamagedFileError, words)


def test_one_shard_in_another_dtype(copy: Path) -> None:
    rewrite_shard(copy / shard(2), {n: t.half() for n, t in load_file(copy / shard(2)).items()})
    refused(copy, InconsistentShardsError, "has two dtypes")


def test_a_tensor_that_the_model_does_not_have(copy: Path) -> None:
    rewrite_shard(copy / shard(1), load_file(copy / shard(1)) | {"model.extra.weight": torch.ones(4)})
    refused(copy, InconsistentShardsError, "hold model.extra.weight, which the model of config.json does not")


def test_buffers_of_older_releases_are_passed_over(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(root / "gpt_neox-tp2", tmp_path / "old"))
    old = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    }
    rewrite_shard(folder / shard(1), load_file(folder / shard(1)) | old)
    assert load_transformers_tp(folder, reshard_on_load=True).state_dict().keys().isdisjoint(old)


def test_names_of_the_plain_checkpoint_where_modules_have_others(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(root / "gpt_neox-tp2", tmp_path / "named"))
    for file in folder.glob("shard-*"):
        # As long as before, so that the header's length stays true.
        file.write_bytes(file.read_bytes().replace(b"lm_head.weight", b"embed_o.weight"))
    refused(folder, InconsistentShardsError, f"no shard in {folder} holds lm_head.weight")


def test_a_degree_that_cuts_heads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    refused(root / "llama-tp4", CannotSplitError, "num_key_value_heads=4, which tp_size=8 does not divide")


def test_a_model_without_a_plan(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(save("opt", copy.parent / "opt") / "config.json", copy)
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused(copy, UnsupportedTargetError, "no tensor-parallel plan for OPTForCausalLM")
