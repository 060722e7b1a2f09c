"""The `reshard` command: what it writes, what it says, and how it ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.program import run_program
from cli.reshard import command
from tests.integration.reshard.variants import VARIANTS, Tensors, assert_equal, load, rank_shard, save

VARIANT = VARIANTS["llama-kv2"]


class Ran(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """Runs the command in this process, with room for what the process has loaded already."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Ran:
        words = [*map(str, arguments)]
        if "--memory" not in words:
            words += ["--memory", "4GiB"]
        self.capsys.readouterr()
        status = run_program(command, "reshard", words)
        return Ran(status, *self.capsys.readouterr())


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    save(VARIANT, folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """The checkpoint under a name of its own: outputs go beside it."""
    folder = tmp_path / "model"
    folder.symlink_to(saved)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_help_names_every_option_and_imports_nothing_heavy(repository: Path) -> None:
    code = (
        "import sys\nfrom cli.program import run_program\nfrom cli.reshard import command\n"
        "status = run_program(command, 'reshard', ['--help'])\n"
        "heavy = [m for m in ('torch', 'transformers', 'numpy', 'fsspec') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr)\n"
        "sys.exit(status)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert ran.returncode == 0
    assert ran.stderr.strip() == "[]"
    for option in ("--tp", "--format", "--dtype", "--output", "--dry-run", "--verify", "--against", "--json"):
        assert option in ran.stdout
    for name in ("safetensors", "deepspeed", "transformers", "vllm", "megatron", "huggingface"):
        assert name in ran.stdout


def test_as_a_process_beside_the_checkpoint(checkpoint: Path, repository: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "cli.reshard", str(checkpoint), "--tp", "2"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert "safetensors, tp_size 2" in ran.stdout
    assert "DeepSpeed AutoTP takes it, with 2 ranks exactly" in ran.stdout
    output = checkpoint.with_name("model-tp2")
    original = load(checkpoint)
    for rank in (0, 1):
        assert_equal(load(output, f"*-rank-{rank:02d}-*"), rank_shard(VARIANT, original, 2, rank))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((output / name).read_text()) == json.loads((checkpoint / name).read_text())
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["model", "model-tp2"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_terminal_gets_a_bar(options: list[str], checkpoint: Path, repository: Path) -> None:
    terminal, theirs = os.openpty()
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "cli.reshard", str(checkpoint), "--tp", "2", *options],
            cwd=repository,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.set_blocking(terminal, False)
        try:
            shown = os.read(terminal, 1 << 16).decode()
        except BlockingIOError:
            shown = ""
    finally:
        os.close(terminal)
        os.close(theirs)
    assert ran.returncode == 0, shown
    # Bytes done, and the time that is left; nothing where a program reads the answer.
    assert bool(re.search(r"resharding.*\d (bytes|kB|MB)", shown)) == (options == [])
    assert ("-:--:--" in shown or "0:00:0" in shown) == (options == [])


@pytest.mark.parametrize(
    "arguments, name",
    [
        (["--tp", "4"], "model-tp4"),
        (["--tp", "4,2,4"], "model-tp4-2"),
        (["--format", "huggingface"], "model-merged"),
        (["--tp", "2", "--format", "vllm"], "model-tp2"),
    ],
)
def test_default_output_stands_beside(
    arguments: list[str], name: str, checkpoint: Path, program: Program
) -> None:
    ran = program(f"{checkpoint}/", *arguments, "--json")
    assert ran.status == 0
    assert ran.json["output"] == str(checkpoint.with_name(name))
    assert checkpoint.with_name(name).is_dir()


def test_several_degrees_get_a_folder_each(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    ran = program(checkpoint, "--tp", "2,4,8", "--output", tmp_path / "out", "--json")
    assert ran.status == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tp2", "tp4", "tp8"]
    assert ran.json["files"] == 14
    # The source is read once, whatever the number of targets.
    assert ran.json["read_bytes"] == sum(t.nbytes for t in load(checkpoint).values())
    assert ran.json["written_bytes"] == sum(map(len, files(tmp_path / "out").values()))
    for tp_size in (2, 4, 8):
        single = tmp_path / f"single{tp_size}"
        assert program(checkpoint, "--tp", tp_size, "--output", single).status == 0
        assert files(single) == files(tmp_path / "out" / f"tp{tp_size}")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Missing argument 'CHECKPOINT'"),
        (["model"], "Say the degree: --tp 8"),
        (["model", "--tp", "0"], "'0' is no list of degrees"),
        (["model", "--tp", "2,,4"], "'2,,4' is no list of degrees"),
        (["model", "--tp", "two"], "'two' is no list of degrees"),
        (["model", "--tp", "2", "--format", "gguf"], "'gguf' is not one of"),
        (["model", "--tp", "2", "--format", "huggingface"], "--format huggingface is merged: --tp 1"),
        (["model", "--tp", "2", "--against", "x"], "--against belongs to --verify"),
        (["model", "--tp", "2", "--verify"], "--tp makes no sense with it"),
        (["model", "--verify", "--dry-run"], "--dry-run makes no sense with it"),
        (["model", "--tp", "2", "--memory", "much"], "'much'"),
        (["model", "--tp", "2", "--max-shard-size", "-1GB"], "Invalid value for '--max-shard-size'"),
        (["model", "--tp", "2", "--jobs", "0"], "0 is not in the range"),
        (["model", "--tp", "2", "--config", "nowhere.json"], "'nowhere.json' does not exist"),
        (["model", "--tensor-parallel", "2"], "No such option"),
    ],
)
def test_usage_errors_end_with_status_two(arguments: list[str], message: str, program: Program) -> None:
    ran = program(*arguments)
    assert ran.status == 2
    assert message in ran.err
    assert ran.out == ""
    told = program(*arguments, "--json")
    assert told.status == 2
    assert told.json["error"]["exit_code"] == 2
    assert message in told.json["error"]["message"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tp", "3"], "2 key/value heads; degrees that work: 1, 2, 4, 6, 8, 12, 24"),
        (["--tp", "2", "--format", "deepspeed"], "cannot load 'llama' from pre-shards"),
        (["--tp", "4", "--format", "transformers"], "degrees that work: 1, 2"),
        (["--tp", "2", "--dtype", "int8"], "a checkpoint is cast to float16, bfloat16 or float32"),
        (["--tp", "2", "--dtype", "float61"], "unknown dtype 'float61'"),
        (["--tp", "2", "--memory", "1MiB"], "--memory 1MiB is too little"),
        (["--tp", "2", "--dry-run", "--memory", "1MiB"], "--memory 1MiB is too little"),
        (["--verify"], "has no manifest to verify it by"),
    ],
)
def test_what_makes_no_sense_ends_with_status_three(
    arguments: list[str], message: str, checkpoint: Path, program: Program
) -> None:
    ran = program(checkpoint, *arguments)
    assert ran.status == 3
    assert message in ran.err
    assert ran.err.startswith("reshard: ")
    assert len(ran.err.splitlines()) == 1
    assert [p.name for p in checkpoint.parent.iterdir()] == ["model"]


def test_folders_that_are_no_checkpoint(tmp_path: Path, program: Program) -> None:
    for name in ("nowhere", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir()
        ran = program(tmp_path / name, "--tp", "2", "--output", tmp_path / "out")
        assert ran.status == 3
        assert str(tmp_path / name) in ran.err
        assert len(ran.err.splitlines()) == 1
        assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("options", [["--tp", "2"], ["--format", "huggingface"]])
def test_max_shard_size_closes_files_in_time(
    options: list[str], checkpoint: Path, tmp_path: Path, program: Program
) -> None:
    output = tmp_path / "out"
    ran = program(checkpoint, *options, "--output", output, "--max-shard-size", "60KB", "--json")
    assert ran.status == 0
    shards = sorted(output.glob("*.safetensors"))
    assert len(shards) == ran.json["files"] > 6
    for shard in shards:
        held = load_file(shard)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 60_000
    original = load(checkpoint)
    if options == ["--format", "huggingface"]:
        assert_equal(load(output), original)
        index = json.loads((output / "model.safetensors.index.json").read_text())
        assert {n: load_file(output / f)[n].shape for n, f in index["weight_map"].items()} == {
            n: t.shape for n, t in original.items()
        }
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in original.values())
    else:
        assert_equal(load(output, "*-rank-01-of-02-part-*"), rank_shard(VARIANT, original, 2, 1))
    assert program(output, "--verify", "--against", checkpoint).status == 0
    merged = program(output, "--format", "huggingface", "--output", tmp_path / "merged")
    assert merged.status == 0
    assert_equal(load(tmp_path / "merged"), original)


def test_a_configuration_from_elsewhere(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    ran = program(bare, "--tp", "2")
    assert ran.status == 3
    assert "has no config.json" in ran.err
    assert "--config" in ran.err
    for number, config in enumerate((checkpoint, checkpoint / "config.json")):
        output = tmp_path / f"out{number}"
        assert program(bare, "--tp", "2", "--config", config, "--output", output).status == 0
        assert json.loads((output / "config.json").read_text())["model_type"] == "llama"
        assert_equal(load(output, "*-rank-00-*"), rank_shard(VARIANT, load(bare), 2, 0))


def test_only_an_output_of_its_own_is_overwritten(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    output = tmp_path / "out"
    output.mkdir()
    assert program(checkpoint, "--tp", "2", "--output", output).status == 0
    ran = program(checkpoint, "--tp", "4", "--output", output)
    assert ran.status == 3
    assert "--overwrite" in ran.err
    assert len(list(output.glob("*-of-02.safetensors"))) == 2
    assert program(checkpoint, "--tp", "4", "--output", output, "--overwrite").status == 0
    assert len(list(output.glob("*.safetensors"))) == len(list(output.glob("*-of-04.safetensors"))) == 4
    assert program(checkpoint, "--tp", "2,4", "--output", output, "--overwrite").status == 0
    assert sorted(p.name for p in output.iterdir()) == ["tp2", "tp4"]
    assert program(checkpoint, "--tp", "2", "--output", output, "--overwrite").status == 0
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("unsaved elsewhere")
    ran = program(checkpoint, "--tp", "2", "--output", foreign, "--overwrite")
    assert ran.status == 3
    assert "is not overwritten" in ran.err
    assert files(foreign) == {"thesis.txt": b"unsaved elsewhere"}


def test_the_source_is_no_output(checkpoint: Path, tmp_path: Path, program: Program) -> None:
    output = tmp_path / "out"
    assert program(checkpoint, "--tp", "2", "--output", output).status == 0
    before = files(output)
    for options in ([], ["--overwrite"]):
        ran = program(output, "--tp", "4", "--output", output, *options)
        assert ran.status == 3
        assert "is the source itself" in ran.err
        assert files(output) == before
