"""The `reshard` command: what it writes, what it says, and how it ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.integration.reshard.oracle import rank_shard
from tests.integration.reshard.variants import assert_equal, load

from .conftest import VARIANT, Program, files


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
        (["--tp", "2", "--memory", "1MiB"], "--memory of 1 MiB is too little"),
        (["--tp", "2", "--dry-run", "--memory", "1MiB"], "--memory of 1 MiB is too little"),
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
