"""A probe of this very machine, GPU or none: it ends, its file plans, and parts that fail are left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cli.commands.plan import command as plan_command
from cli.commands.probe import command as probe_command
from planner.hardware.files import quantities
from planner.hardware.load import load
from planner.plan import decode
from planner.probe.findings import Findings
from planner.probe.run import probe
from planner.sources import Source


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The profile of this machine, and what `--json` said of it."""
    folder = tmp_path_factory.mktemp("probe")
    out = folder / "here.toml"
    options = ["--out", str(out), "--disk", str(folder), "--json", "--timeout", "600"]
    result = CliRunner().invoke(probe_command, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    said: dict[str, object] = json.loads(result.stdout)
    return out, said


def test_the_profile_loads_and_its_numbers_are_measured(here: tuple[Path, dict[str, object]]) -> None:
    profile = load(str(here[0]))
    assert profile.name == "here"
    sources = {path: quantity.source for path, quantity in quantities(profile)}
    assert set(sources.values()) == {Source.MEASURED}
    assert profile.host.memory_bytes.value > 0
    assert {"float32", "bfloat16", "float16"} & set(profile.host.flops_per_s)


def test_what_was_not_measured_is_said(here: tuple[Path, dict[str, object]]) -> None:
    missing = " ".join(here[1]["missing"])  # type: ignore[call-overload]
    profile = load(str(here[0]))
    assert ("no GPU is visible" in missing) == (profile.num_gpus == 0)
    assert ("the disk could not be measured" in missing) == (profile.disk is None)


def test_the_details_are_in_the_file(here: tuple[Path, dict[str, object]]) -> None:
    series = here[1]["series"]
    assert isinstance(series, dict)
    for name in ("cpu weights read, float32, bytes/s by rows", "host time per operation, seconds by model"):
        assert name in series
        assert f"# {name}: " in here[0].read_text()


def test_the_profile_plans(here: tuple[Path, dict[str, object]]) -> None:
    options = ["--model", "gpt2", "--hardware", str(here[0]), "--dtype", "float32", "--json"]
    result = CliRunner().invoke(plan_command, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    plan = decode(result.stdout.encode())
    assert plan.hardware.name == "here"
    assert plan.prediction.tokens_per_s > 0


def test_a_part_that_takes_too_long_is_left_out() -> None:
    findings = probe(disk_folder=None, timeout_s=0.01)
    assert "the disk was left out, as asked" in findings.missing
    late = [sentence for sentence in findings.missing if "did not end within" in sentence]
    assert {"the host's own work", "the processor"} <= {sentence.split(" could not")[0] for sentence in late}
    assert set(findings.quantities) == {"host.installed_memory_bytes", "host.memory_bytes"}


def test_a_disk_in_memory_is_none(tmp_path: Path) -> None:
    out = tmp_path / "disk.json"
    options = json.dumps({"folder": os.path.realpath("/dev/shm")})
    subprocess.run((sys.executable, "-m", "planner.probe.child", "disk", str(out), options), check=True)
    findings = msgspec.json.decode(out.read_bytes(), type=Findings)
    assert findings.quantities == {}
    (sentence,) = findings.missing
    assert "no local disk" in sentence


def test_sums_over_ranks_are_measured(tmp_path: Path) -> None:
    """With gloo here; the same code as with NCCL."""
    out = tmp_path / "sums.json"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    options = json.dumps({"backend": "gloo", "largest_bytes": 2**24})
    command = (sys.executable, *launcher, "-m", "planner.probe.child", "collectives", str(out), options)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    findings = msgspec.json.decode(out.read_bytes(), type=Findings)
    one = findings.quantities["fabric.bus_bytes_per_s"]
    assert one.value > 0
    assert "2 ranks with gloo" in one.method
    sizes = findings.series["all-reduce, seconds by bytes"]
    assert {"4096", "65536", "1048576", "16777216"} < set(sizes)


def test_a_part_that_is_not_known_is_an_error(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "planner.probe.child", "engine", str(tmp_path / "x"), "{}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "engine" in done.stderr
