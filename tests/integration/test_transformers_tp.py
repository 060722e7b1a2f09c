"""Distributed shards of ours through our loader: real processes, and the plain model's tokens.

What transformers itself writes says what right shards look like.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fixtures import families, tiny
from reshard.errors import (
    CannotSplitError,
    DamagedFileError,
    InconsistentShardsError,
    MissingFileError,
    UnsupportedTargetError,
)
from reshard.job import Request
from reshard.loaders.transformers_tp import load_transformers_tp
from reshard.run import reshard

#: Tied and untied heads, biases, experts, renamed heads, fused rows that are gathered.
FAMILIES = ("llama", "gpt_neox", "mixtral", "qwen3_moe", "gemma2", "phi", "phi3")
#: As many that two and four ranks have whole ones, and still fewer for keys and values.
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
#: float32 sums in another order, as a share of the largest logit.
TOLERANCE = 1e-5
RANK_SCRIPT = Path(__file__).with_name("transformers_tp_rank.py")

Boxes = dict[tuple[str, tuple[int, ...]], torch.Tensor]


def shard(number: int) -> str:
    """The name of shard `number`, counted from one."""
    return f"shard-{number:05d}-model-00001-of-00001.safetensors"


def cut(source: Path, tp_size: int, output: Path) -> Path:
    """Write a checkpoint's shards as the `transformers` target does."""
    reshard(Request(source=str(source), output=output, degrees=(tp_size,), format="transformers"))
    return output


def boxes(folder: Path) -> Boxes:
    """Every tensor of every shard, by its name and where it begins."""
    found: Boxes = {}
    for file in sorted(folder.glob("shard-*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            info = json.loads(stream.metadata()["DCP_SHARDING_INFO"])
            for name in info:
                found[name, tuple(info[name]["saved_offsets"])] = stream.get_tensor(name)
    return found


def sizes_bytes(file: Path) -> dict[str, int]:
    """Bytes of every tensor in a file."""
    return {name: tensor.nbytes for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every family's plain checkpoint, its shards at degrees 2 and 4, and ranks' results."""
    base = tmp_path_factory.getbasetemp()
    # The first of several pytest workers makes it, the others wait.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root = shared / "transformers-tp"
    with (shared / "transformers-tp.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "done").exists():
            shutil.rmtree(root, ignore_errors=True)
            write_checkpoints(root)
            run_ranks(root)
            (root / "done").touch()
    return root


def write_checkpoints(root: Path) -> None:
    for family in FAMILIES:
        with pytest.MonkeyPatch.context() as patch:
            spec = families.FAMILIES[family]
            more = {name: HEADS[name] for name in HEADS.keys() & spec.settings.keys()}
            patch.setitem(families.FAMILIES, family, spec._replace(settings=spec.settings | more))
            tiny.save(family, root / "plain" / family)
        for tp_size in (2, 4):
            cut(root / "plain" / family, tp_size, root / f"{family}-tp{tp_size}")


def run_ranks(root: Path) -> None:
    """One job of `torchrun` with gloo does all that needs two processes."""
    jobs: dict[str, dict[str, Any]] = {"wrong degree": load_job(root / "llama-tp4", reshard_on_load=False)}
    for family in FAMILIES:
        plain = str(root / "plain" / family)
        jobs[f"{family} plain"] = {"kind": "plain", "folder": plain}
        jobs[f"{family} save"] = {"kind": "save", "folder": plain, "save_to": str(root / f"{family}-own")}
        jobs[f"{family} own"] = load_job(root / f"{family}-own", reshard_on_load=False)
        jobs[f"{family} 2"] = load_job(root / f"{family}-tp2", reshard_on_load=False)
        jobs[f"{family} 4"] = load_job(root / f"{family}-tp4", reshard_on_load=True)
    (root / "jobs.json").write_text(json.dumps(jobs))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(RANK_SCRIPT), str(root / "jobs.json"), str(root)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def ranks(root: Path) -> list[dict[str, Any]]:
    """What each of the two processes saw."""
    return [json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(2)]


def load_job(folder: Path, *, reshard_on_load: bool) -> dict[str, Any]:
    return {"kind": "load", "folder": str(folder), "reshard_on_load": reshard_on_load}


@pytest.mark.parametrize("shards", ["2", "4", "own"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_generate_what_the_plain_model_does(
    ranks: list[dict[str, Any]], family: str, shards: str
) -> None:
    for rank in ranks:
        plain, sharded = rank[f"{family} plain"], rank[f"{family} {shards}"]
        assert "error" not in sharded, sharded
        assert sharded["tokens"] == plain["tokens"]
        expected = np.array(plain["logits"])
        error = np.abs(np.array(sharded["logits"]) - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shards_are_those_that_transformers_writes(
    root: Path, ranks: list[dict[str, Any]], family: str
) -> None:
    assert "error" not in ranks[0][f"{family} save"]
    ours, own = boxes(root / f"{family}-tp2"), boxes(root / f"{family}-own")
    assert ours.keys() == own.keys()
    assert all(torch.equal(ours[key], own[key]) for key in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rank_reads_its_own_shard_and_what_is_replicated(
    root: Path, ranks: list[dict[str, Any]], family: str
) -> None:
    shards = {number: sizes_bytes(root / f"{family}-tp2" / shard(number)) for number in (1, 2)}
    replicated_bytes = sum(size for name, size in shards[1].items() if name not in shards[2])
    own_bytes = sum(shards[2].values())
    assert ranks[0][f"{family} 2"]["read_bytes"].keys() == {shard(1)}
    assert ranks[1][f"{family} 2"]["read_bytes"] == {shard(1): replicated_bytes, shard(2): own_bytes}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tp_size", [2, 4])
def test_one_process_loads_every_bit_of_the_model(root: Path, family: str, tp_size: int) -> None:
    loaded = load_transformers_tp(root / f"{family}-tp{tp_size}", reshard_on_load=True).state_dict()
    plain = transformers.AutoModelForCausalLM.from_pretrained(root / "plain" / family, dtype=torch.float32)
    expected = plain.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_the_dtype_asked_for_is_the_one_loaded(root: Path) -> None:
    model = load_transformers_tp(root / "llama-tp2", dtype=torch.bfloat16, reshard_on_load=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_every_rank_refuses_shards_of_another_degree(root: Path, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["wrong degree"]["error"] == "InconsistentShardsError"
        assert rank["wrong degree"]["sentence"] == (
            f"{root / 'llama-tp4'} was cut for tp_size=4, and the number of processes is 2; start 4, cut it "
            "again with --tp 2, or pass reshard_on_load=True"
        )


# What follows is found in the headers, before any process talks to another: one process is enough.


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


def test_no_shards_and_no_configuration(copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").unlink()
    refused(copy, MissingFileError, "no config.json")
    tiny.save("llama", tmp_path / "plain")
    refused(tmp_path / "plain", MissingFileError, f"no {shard(1)}")


def test_another_safetensors_file_would_be_read_too(root: Path, copy: Path) -> None:
    shutil.copy(root / "plain" / "phi" / "model.safetensors", copy)
    refused(copy, InconsistentShardsError, "holds model.safetensors beside the shards")


def test_a_shard_of_another_model(root: Path, copy: Path) -> None:
    shutil.copy(root / "gpt_neox-tp4" / shard(2), copy)
    refused(copy, InconsistentShardsError, "is of llama (")
    refused(copy, InconsistentShardsError, f"and {shard(2)} is of gpt_neox (")


def test_a_shard_of_another_degree(root: Path, copy: Path) -> None:
    shutil.copy(root / "llama-tp2" / shard(2), copy)
    refused(copy, InconsistentShardsError, f"at tp_size=4, and {shard(2)} is of llama (")


def test_a_shard_of_transformers_own_among_ours(
    root: Path, ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(root / "llama-tp2", tmp_path / "mixed"))
    shutil.copy(root / "llama-own" / shard(2), folder)
    refused(folder, InconsistentShardsError, f"{shard(2)} is without a manifest")


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


def test_a_model_without_a_plan(root: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.build("opt").save_pretrained(copy.parent / "opt")
    shutil.copy(copy.parent / "opt" / "config.json", copy)
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused(copy, UnsupportedTargetError, "no tensor-parallel plan for OPTForCausalLM")
