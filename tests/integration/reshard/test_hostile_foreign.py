"""Damaged and hostile checkpoints of other tools: one sentence, status 3, and nothing left behind."""

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.program import run_program
from cli.reshard import command
from fixtures import tiny
from tests.integration.reshard.children import contents, made, refused
from tests.integration.reshard.test_hostile import (
    change_header,
    evil_entry,
    in_json,
    payload,
    truncate,
)

_DEEPSPEED = "ds_inference_config.json"
_DCP = "shard-00001-model-00001-of-00001.safetensors"

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of each format, as its own tool would have written it: without our account."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for family, names in {"llama": ("transformers", "vllm", "megatron"), "bloom": ("deepspeed",)}.items():
        tiny.save(family, folder / family)
        for name in names:
            made(folder / family, "--tp", "2", "--format", name, "--output", folder / name)
            (folder / name / "reshard.json").unlink()
    return folder


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


def cut(pattern: str, keep: float) -> Damage:
    return lambda folder: truncate(first(folder, pattern).name, keep)(first(folder, pattern).parent)


def lose(pattern: str) -> Damage:
    return lambda folder: first(folder, pattern).unlink()


def evil(pattern: str) -> Damage:
    """Another pickle in an archive."""

    def damage(folder: Path) -> None:
        file = first(folder, pattern)
        # The payload tells of itself beside the checkpoint.
        place = folder / "pytorch_model.bin"
        torch.save({"model": {"a": torch.zeros(1)}}, place)
        evil_entry(folder)
        shutil.move(place, file)

    return damage


def config(change: Callable[[dict[str, Any]], object]) -> Damage:
    return in_json(_DEEPSPEED, change)


def checkpoints(change: Callable[[dict[str, Any]], object]) -> Damage:
    return config(lambda c: change(c["checkpoints"]))


def offsets(text: str) -> Damage:
    def change(header: dict[str, Any]) -> None:
        header["__metadata__"]["DCP_SHARDING_INFO"] = text

    return lambda folder: change_header(folder / _DCP, change)


def resave(pattern: str, change: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        file = first(folder, pattern)
        with torch.serialization.safe_globals([argparse.Namespace]):
            torch.save(change(torch.load(file, weights_only=True)), file)

    return damage


def swap(left: str, right: str) -> Damage:
    """Two ranks' files under each other's names."""

    def damage(folder: Path) -> None:
        one, other = first(folder, left), first(folder, right)
        one.rename(folder / "x")
        other.rename(one)
        (folder / "x").rename(other)

    return damage


def twice(left: str, right: str) -> Damage:
    return lambda folder: shutil.copy(first(folder, left), first(folder, right))


CASES: list[tuple[str, Damage, tuple[str, ...]]] = [
    ("deepspeed", lambda f: (f / _DEEPSPEED).write_text("{"), (_DEEPSPEED,)),
    ("deepspeed", lambda f: (f / _DEEPSPEED).write_text("[" * 100_000), (_DEEPSPEED,)),
    ("deepspeed", config(lambda c: c.pop("checkpoints")), (_DEEPSPEED,)),
    ("deepspeed", config(lambda c: c.update(tp_size=0)), ("tp_size",)),
    ("deepspeed", config(lambda c: c.update(tp_size=-2)), ("tp_size",)),
    ("deepspeed", config(lambda c: c.update(tp_size=3)), ("tp_size",)),
    ("deepspeed", config(lambda c: c.update(tp_size="two")), (_DEEPSPEED,)),
    ("deepspeed", checkpoints(lambda c: c.update(tp=[])), (_DEEPSPEED,)),
    ("deepspeed", checkpoints(lambda c: c["tp"].__setitem__(0, "../../x")), ("../../x",)),
    ("deepspeed", checkpoints(lambda c: c["tp"].__setitem__(0, "/etc/passwd")), ("/etc/passwd",)),
    ("deepspeed", checkpoints(lambda c: c["non_tp"].__setitem__(0, "../x")), ("../x",)),
    ("deepspeed", lose("tp_00_00.pt"), ("tp_00_00.pt",)),
    ("deepspeed", cut("tp_00_00.pt", 0.5), ("tp_00_00.pt", "truncated")),
    ("deepspeed", evil("tp_00_00.pt"), ("tp_00_00.pt", "refused")),
    ("deepspeed", evil("non-tp.pt"), ("non-tp.pt", "refused")),
    ("deepspeed", resave("tp_00_00.pt", lambda d: dict(list(d.items())[1:])), ("rank 0", "norm_w")),
    ("deepspeed", resave("tp_00_00.pt", lambda d: {k: t[:-1] for k, t in d.items()}), ("tp_00_00.pt",)),
    ("deepspeed", resave("tp_00_00.pt", lambda d: d | {"more": torch.zeros(1)}), ("more",)),
    ("deepspeed", resave("tp_00_00.pt", lambda d: list(d.values())), ("tp_00_00.pt", "list")),
    ("megatron", cut("*.pt", 0.5), ("model_optim_rng.pt", "truncated")),
    ("megatron", evil("*.pt"), ("model_optim_rng.pt", "refused")),
    ("megatron", lose("mp_rank_01/*.pt"), ()),
    ("megatron", lose("mp_rank_00/*.pt"), ("mp_rank_00",)),
    ("megatron", resave("*.pt", lambda d: d["model"]), ("model",)),
    ("megatron", resave("*.pt", lambda d: d | {"checkpoint_version": 99}), ("99",)),
    ("megatron", resave("*.pt", lambda d: d | {"checkpoint_version": "x"}), ("checkpoint version",)),
    ("megatron", resave("*.pt", lambda d: d | {"model": {}}), ()),
    ("megatron", resave("*.pt", lambda d: d | {"model": 3}), ("int",)),
    ("transformers", offsets("{"), (_DCP,)),
    ("transformers", offsets("[]"), (_DCP,)),
    ("transformers", offsets("[" * 100_000), (_DCP,)),
    ("deepspeed", lambda f: (f / _DEEPSPEED).write_bytes(b'{"\xff": 1}'), (_DEEPSPEED,)),
    ("transformers", offsets("{}"), (_DCP, "begins")),
    ("transformers", lose(_DCP), ()),
    ("transformers", lose("shard-00002*"), ("lacks",)),
    ("transformers", cut(_DCP, 0.5), (_DCP, "truncated")),
    ("transformers", twice("shard-00001*", "shard-00002*"), ()),
    ("vllm", lose("model-rank-0*"), ("rank",)),
    ("vllm", lose("model-rank-1*"), ()),
    ("vllm", cut("model-rank-1*", 0.5), ("model-rank-1", "truncated")),
]


@pytest.mark.parametrize("kind, damage, words", CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
def test_damaged_checkpoints_of_other_tools(
    made_once: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    damage: Damage,
    words: tuple[str, ...],
) -> None:
    """In this process: a child would spend its time on importing torch."""
    folder = tmp_path / "model"
    shutil.copytree(made_once / kind, folder)
    damage(folder)
    before = contents(tmp_path)
    arguments = [str(folder), "--tp", "1", "--format", "huggingface", "--output", str(tmp_path / "out")]
    status = run_program(command, "reshard", arguments)
    refused(subprocess.CompletedProcess(arguments, status, *capsys.readouterr()), *words)
    assert contents(tmp_path) == before
    assert not payload(folder).exists()
    assert not os.path.lexists(tmp_path / "out")
