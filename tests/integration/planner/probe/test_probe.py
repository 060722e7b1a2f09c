"""A probe of this very machine, GPU or none: it ends, its file plans, and parts that fail are left out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cli.commands.plan import command as plan_command
from cli.commands.probe import command as probe_command
from planner.hardware.files import quantities
from planner.hardware.load import load
from planner.probe.findings import Findings
from planner.probe.run import probe, reading_ahead
from planner.schema.plan import decode
from planner.schema.quantity import Source


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
    for name in ("host time per operation, seconds by model", "seconds that each part took"):
        assert name in series
        assert f"# {name}: " in here[0].read_text()


def test_every_dtype_of_the_processor_has_its_rates_by_rows_and_of_attention(
    here: tuple[Path, dict[str, object]],
) -> None:
    host = load(str(here[0])).host
    assert set(host.gemv_bytes_per_s) == set(host.attention_bytes_per_s) == set(host.flops_per_s)
    assert {dtype: set(rates) for dtype, rates in host.few_rows_flops_per_s.items()} == {
        dtype: {4, 8, 32, 128, 512} for dtype in host.flops_per_s
    }
    for dtype, rate in host.flops_per_s.items():
        assert host.few_rows_flops_per_s[dtype][512] == rate


def test_where_the_time_went_is_among_the_details(here: tuple[Path, dict[str, object]]) -> None:
    series = here[1]["series"]
    assert isinstance(series, dict)
    seconds = series["seconds that each measurement took"]
    named = {"imports of overheads", "host time per operation", "host time per hook", "imports of cpu"}
    assert named <= set(seconds)


def test_the_profile_plans(here: tuple[Path, dict[str, object]]) -> None:
    options = ["--model", "gpt2", "--hardware", str(here[0]), "--dtype", "float32", "--json"]
    result = CliRunner().invoke(plan_command, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    plan = decode(result.stdout.encode())
    assert plan.hardware.name == "here"
    assert plan.prediction.tokens_per_s > 0


def test_a_part_that_takes_too_long_is_left_out() -> None:
    findings = probe(disk_folder=None, timeout_s=0.01)
    assert "the disk was not measured, as requested" in findings.missing
    late = [sentence for sentence in findings.missing if "did not end within" in sentence]
    assert {"the host's own work", "the processor"} <= {sentence.split(" could not")[0] for sentence in late}
    assert set(findings.quantities) == {"host.installed_memory_bytes", "host.memory_bytes"}


@pytest.mark.parametrize(
    "number, status, word",
    [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated.")],
)
def test_an_interrupt_leaves_no_process_and_no_file(
    number: signal.Signals, status: int, word: str, tmp_path: Path
) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "here.toml"
    scratch.mkdir()
    program = "import sys; from cli.main import main; sys.exit(main())"
    command = (sys.executable, "-c", program, "probe", "--no-disk", "--out", str(out))
    environment = {**os.environ, "TMPDIR": str(scratch), "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "measuring the host's own work\n"
        while child.poll() is None and not _runs_torch(scratch):
            time.sleep(0.02)
        child.send_signal(number)
        words = child.stderr.read()
    assert child.returncode == status
    assert words.splitlines()[-1] == f"planner: {word}"
    assert list(tmp_path.rglob("*")) == [scratch]
    assert _processes_of(scratch) == []


def _processes_of(scratch: Path) -> list[Path]:
    """Those whose temporary files are below a folder."""
    return [entry for entry in Path("/proc").glob("[0-9]*") if _has(entry / "environ", f"TMPDIR={scratch}")]


def _runs_torch(scratch: Path) -> bool:
    """Whether a part, of which no other process takes torch into itself, has come so far."""
    return any(_has(process / "maps", "/libtorch_cpu.so") for process in _processes_of(scratch))


def _has(file: Path, word: str) -> bool:
    try:
        return word.encode() in file.read_bytes()
    except OSError:
        return False  # the process has ended, or is another's


def test_a_disk_in_memory_is_none(tmp_path: Path) -> None:
    out = tmp_path / "disk.json"
    options = json.dumps({"folder": os.path.realpath("/dev/shm")})
    subprocess.run((sys.executable, "-m", "planner.probe.child", "disk", str(out), options), check=True)
    findings = msgspec.json.decode(out.read_bytes(), type=Findings)
    assert findings.quantities == {}
    (sentence,) = findings.missing
    assert "not a local disk" in sentence


def test_a_gpu_that_torch_does_not_see_is_said_and_is_none(tmp_path: Path) -> None:
    """The driver's list does not heed CUDA_VISIBLE_DEVICES, and a torch for the CPU sees no GPU at all."""
    out = tmp_path / "gpu.json"
    command = (sys.executable, "-m", "planner.probe.child", "gpu", str(out), '{"used_by_others_bytes": 0}')
    subprocess.run(command, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    findings = msgspec.json.decode(out.read_bytes(), type=Findings)
    assert (findings.quantities, findings.facts) == ({}, {})
    (sentence,) = findings.missing
    assert "no GPU is visible to torch" in sentence


def test_a_disk_part_that_is_killed_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    folder, options = tmp_path / "disk", json.dumps({"folder": str(tmp_path / "disk")})
    folder.mkdir()
    command = (sys.executable, "-m", "planner.probe.child", "disk", str(tmp_path / "disk.json"), options)
    with subprocess.Popen(command) as child:
        while child.poll() is None and not _holds(child.pid, folder):
            time.sleep(0.01)
        child.kill()
    assert not list(folder.iterdir())


def _holds(pid: int, folder: Path) -> bool:
    """Whether a process has a file of this folder open."""
    try:
        return any(os.readlink(link).startswith(f"{folder}/") for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False  # the handle or the process has gone


def test_the_child_that_reads_ahead_ends_with_what_it_runs_beside() -> None:
    with reading_ahead(wanted=True):
        assert len(_readers()) == 1
    assert _readers() == []
    with reading_ahead(wanted=False):
        assert _readers() == []


def _readers() -> list[int]:
    """Children of this process that read ahead."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if parent == os.getpid() and b"planner.probe.prefetch" in command:
            found.append(int(entry.name))
    return found


def test_the_files_that_are_read_ahead_are_those_that_an_import_opens() -> None:
    program = """
import sys
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
import transformers
from planner.probe.prefetch import model_files
transformers.OPTForCausalLM
ahead = {str(path) for path in model_files()}
of_models = {name for name in opened if "/models/" in name and name.endswith(".py")}
print(len(ahead), len(ahead & opened), len(of_models))
"""
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=True)
    ahead, both, opened = map(int, done.stdout.split())
    assert ahead == both > 0.9 * opened > 0


def test_reading_ahead_imports_what_the_next_part_does() -> None:
    program = """
import sys
from planner.probe import prefetch
prefetch.main()
print("planner.probe.parts.overheads" in sys.modules, "transformers.models.opt.modeling_opt" in sys.modules)
"""
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


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
