"""Distributed shards of ours through our loader: real processes, and the plain model's tokens.

What transformers itself writes says what right shards look like.
"""

import fcntl
import json
import os
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
from safetensors.torch import load_file

from reshard.loaders.transformers_tp import load_transformers_tp
from tests.integration.transformers_tp_shards import cut, save, shard

#: Tied and untied heads, biases, experts, renamed heads, fused rows that are gathered.
FAMILIES = ("llama", "gpt_neox", "mixtral", "qwen3_moe", "gemma2", "phi", "phi3")
#: float32 sums in another order, as a share of the largest logit.
TOLERANCE = 1e-5
RANK_SCRIPT = Path(__file__).with_name("transformers_tp_rank.py")

Boxes = dict[tuple[str, tuple[int, ...]], torch.Tensor]


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
        plain = save(family, root / "plain" / family)
        for tp_size in (2, 4):
            cut(plain, tp_size, root / f"{family}-tp{tp_size}")


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
            "again with tp_size=2, or pass reshard_on_load=True"
        )
