"""`reshard --dry-run` and `--verify` tell the truth about the bytes, and a cast what it lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.integration.reshard.oracle import rank_shard
from tests.integration.reshard.variants import Tensors, assert_equal, load

from .conftest import VARIANT, Program, Ran, files


def span_bytes(root: Path, span: dict[str, Any]) -> bytes:
    with (root / span["file"]).open("rb") as stream:
        stream.seek(span["offset_bytes"])
        return stream.read(span["size_bytes"])


def box_of(tensor: torch.Tensor, span: dict[str, Any]) -> torch.Tensor:
    return tensor[tuple(slice(*interval) for interval in span["box"])].contiguous()


@pytest.mark.parametrize("options", [["--tp", "2,8"], ["--tp", "2", "--format", "vllm"]])
def test_dry_run_tells_what_then_happens(
    options: list[str], checkpoint: Path, tmp_path: Path, program: Program
) -> None:
    output = tmp_path / "out"
    arguments = [checkpoint, *options, "--output", output]
    ran = program(*arguments, "--dry-run", "--json")
    assert ran.status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    told = ran.json
    done = program(*arguments, "--json").json
    assert told["read_bytes"] == done["read_bytes"]
    assert told["written_bytes"] == sum(map(len, files(output).values()))
    assert {f["file"]: f["size_bytes"] for f in told["files"]} == {
        name: len(raw) for name, raw in files(output).items() if name.endswith(".safetensors")
    }
    assert told["peak_memory_bytes"] <= 4 << 30
    assert told["notes"] == done["notes"]
    original = load(checkpoint)
    assert {t["name"] for t in told["byte_map"]} == set(original)
    seen = 0
    for entry in told["byte_map"]:
        tensor = original[entry["name"]]
        assert (entry["dtype"], entry["shape"]) == ("float32", list(tensor.shape))
        (source,) = entry["sources"]
        assert span_bytes(checkpoint, source) == tensor.numpy().tobytes()
        for target in entry["targets"]:
            wanted = box_of(tensor, target).numpy().tobytes()
            found = span_bytes(output, target)
            assert len(wanted) == target["size_bytes"]
            # A region with gaps begins with the box's first row.
            whole = len(wanted) if target["is_contiguous"] else 4
            assert found[:whole] == wanted[:whole]
            seen += target["is_contiguous"]
    assert seen > 100 or "vllm" in options


def test_dry_run_shows_tables(checkpoint: Path, program: Program) -> None:
    ran = program(checkpoint, "--tp", "4", "--dry-run")
    assert ran.status == 0
    for text in (
        "huggingface, tp_size 1, llama",
        "model-rank-03-of-04.safetensors",
        "peak memory",
        "DeepSpeed AutoTP takes it, with 4 ranks exactly",
    ):
        assert text in ran.out
    assert "[96,96]float32→4×[0:24,:]…[72:96,:]" in "".join(ran.out.split())
    assert max(map(len, ran.out.splitlines())) <= 80


def test_verify_with_and_without_the_source(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    output = tmp_path / "out"
    assert program(checkpoint, "--tp", "4", "--output", output, "--dtype", "bfloat16").status == 0
    before = files(output)
    ran = program(output, "--verify")
    assert ran.status == 0
    assert "every hash as the manifest has it; replicas equal" in ran.out
    found = program(output, "--verify", "--against", checkpoint, "--json")
    assert found.status == 0
    shards = {n: raw for n, raw in before.items() if n.endswith(".safetensors")}
    assert (found.json["tp_size"], found.json["files"], found.json["tensors"]) == (
        4,
        4,
        len(load(checkpoint)),
    )
    # Every byte of every shard's tensors, KV heads that two ranks share included.
    assert found.json["read_bytes"] == sum(t.nbytes for n in shards for t in load(output, n).values())
    assert files(output) == before


def test_verify_finds_every_flipped_byte(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    output = tmp_path / "out"
    assert program(checkpoint, "--tp", "4", "--output", output).status == 0
    entries = program(checkpoint, "--tp", "4", "--output", output, "--dry-run", "--json").json["byte_map"]
    by_name = {entry["name"]: entry["targets"] for entry in entries}
    for name in (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.norm.weight",
    ):
        for target in (by_name[name][0], by_name[name][3]):
            file = output / target["file"]
            raw = bytearray(file.read_bytes())
            raw[target["offset_bytes"]] ^= 1
            file.write_bytes(raw)
            ran = program(output, "--verify")
            assert ran.status == 3
            assert name in ran.err
            assert target["file"] in ran.err
            merge = program(output, "--format", "huggingface", "--output", tmp_path / "merged")
            assert merge.status == 3
            assert not (tmp_path / "merged").exists()
            raw[target["offset_bytes"]] ^= 1
            file.write_bytes(raw)
    assert program(output, "--verify").status == 0


def test_verify_against_another_model(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    output, other = tmp_path / "out", tmp_path / "other"
    assert program(checkpoint, "--tp", "2", "--output", output).status == 0
    tensors = load(checkpoint)
    other.mkdir()
    (other / "config.json").write_bytes((checkpoint / "config.json").read_bytes())

    def against(changed: Tensors) -> Ran:
        save_file(changed, other / "model.safetensors")
        return program(output, "--verify", "--against", other)

    assert against(tensors).status == 0
    name = "model.layers.1.mlp.up_proj.weight"
    ran = against(tensors | {name: tensors[name] * 2})
    assert (ran.status, f"{name} has other values" in ran.err) == (3, True)
    ran = against({n: t for n, t in tensors.items() if n != name})
    assert (ran.status, f"has no {name}" in ran.err) == (3, True)
    ran = against(tensors | {name: tensors[name][:-1].contiguous()})
    assert (ran.status, f"{name} is [100, 96] in" in ran.err) == (3, True)


def test_a_cast_that_overflows_is_told(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    source = tmp_path / "large"
    source.mkdir()
    tensors = load(checkpoint)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name][3, 5] = 1e6
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    ran = program(source, "--tp", "2", "--dtype", "float16")
    assert ran.status == 0
    assert "numbers in 1 tensors are beyond float16 and became" in ran.out
    # What was infinite before is no loss.
    assert name in "".join(ran.out.split())
    assert "model.norm.weight" not in ran.out
    ranks = load(tmp_path / "large-tp2", "*-rank-00-*")
    assert ranks[name].dtype == torch.float16
    assert torch.isinf(ranks[name][3, 5])
    told = program(source, "--tp", "2", "--dtype", "fp16", "--output", tmp_path / "again", "--json")
    assert told.json["overflows"] == [name]
    wide = program(source, "--tp", "2", "--dtype", "bfloat16", "--output", tmp_path / "wide", "--json")
    assert wide.json["overflows"] == []
    for rank in (0, 1):
        expected = {n: t.bfloat16() for n, t in rank_shard(VARIANT, tensors, 2, rank).items()}
        assert_equal(load(tmp_path / "wide", f"*-rank-{rank:02d}-*"), expected)
