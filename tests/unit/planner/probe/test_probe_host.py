"""Cores and memory as a kernel's files tell them; real files, in a folder of the test's own."""

import os
from pathlib import Path

import pytest

from planner.probe.findings import Findings
from planner.probe.parts.disk import file_system
from planner.probe.parts.host import measure, num_cores
from planner.probe.parts.memory import available_bytes, installed_bytes
from planner.probe.run import first_visible, used_gpu_bytes


def system(folder: Path, *, threads_per_core: int = 1, load: str = "0.00") -> Path:
    """A machine whose processors are those that this process may use, so many to a core."""
    (folder / "proc").mkdir(parents=True)
    (folder / "sys/fs/cgroup").mkdir(parents=True)
    (folder / "proc/meminfo").write_text(
        "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   12582912 kB\n"
    )
    (folder / "proc/loadavg").write_text(f"{load} 0.00 0.00 1/100 1234\n")
    blocks = [
        f"processor\t: {cpu}\nmodel name\t: A CPU: fast\nphysical id\t: 0\n"
        f"core id\t\t: {index // threads_per_core}\n"
        for index, cpu in enumerate(sorted(os.sched_getaffinity(0)))
    ]
    (folder / "proc/cpuinfo").write_text("\n".join(blocks))
    return folder


def test_threads_of_a_core_count_once(tmp_path: Path) -> None:
    usable = len(os.sched_getaffinity(0))
    assert num_cores(system(tmp_path / "a")) == usable
    assert num_cores(system(tmp_path / "b", threads_per_core=2)) == (usable + 1) // 2


def test_a_quota_of_the_control_group_counts(tmp_path: Path) -> None:
    machine = system(tmp_path)
    (machine / "sys/fs/cgroup/cpu.max").write_text("100000 100000\n")
    assert num_cores(machine) == 1
    (machine / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert num_cores(machine) == len(os.sched_getaffinity(0))


def test_processors_without_core_ids_are_cores(tmp_path: Path) -> None:
    machine = system(tmp_path)
    lines = "\n".join(f"processor : {cpu}\n" for cpu in sorted(os.sched_getaffinity(0)))
    (machine / "proc/cpuinfo").write_text(lines)
    assert num_cores(machine) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "file, text, expected",
    [
        ("memory.max", "8589934592", 8 * 2**30),
        ("memory.max", "max", 16 * 2**30),
        ("memory.max", str(2**62), 16 * 2**30),
        ("memory/memory.limit_in_bytes", "4294967296", 4 * 2**30),
    ],
)
def test_memory_is_the_smallest_limit(file: str, text: str, expected: int, tmp_path: Path) -> None:
    machine = system(tmp_path)
    limit = machine / "sys/fs/cgroup" / file
    limit.parent.mkdir(exist_ok=True)
    limit.write_text(text + "\n")
    found, where = installed_bytes(machine)
    assert found == expected
    assert ("control group" in where) == (expected != 16 * 2**30)


def test_available_memory_is_the_kernels_without_a_limit(tmp_path: Path) -> None:
    value, how = available_bytes(system(tmp_path))
    assert value == 12 * 2**30
    assert how == "MemAvailable of /proc/meminfo"


GIB = 2**30
#: Files of a control group of each version: limit, what is used, and pages of files among that.
V2 = {"memory.max": "{}", "memory.current": "{}", "memory.stat": "anon 5\nactive_file {}\ninactive_file {}\n"}
V1 = {
    "memory.limit_in_bytes": "{}",
    "memory.usage_in_bytes": "{}",
    "memory.stat": "active_file 1\ntotal_active_file {}\ntotal_inactive_file {}\n",
}


def control_group(machine: Path, version: int, path: str, limit: object, used: int, file: int) -> None:
    """A group's files, and that this process is in it."""
    files, mount = (V2, "sys/fs/cgroup") if version == 2 else (V1, "sys/fs/cgroup/memory")
    folder = machine / mount / path
    folder.mkdir(parents=True, exist_ok=True)
    for (name, text), values in zip(files.items(), ((limit,), (used,), (file // 2, file // 2)), strict=True):
        (folder / name).write_text(text.format(*values))
    line = f"0::/{path}\n" if version == 2 else f"9:name=systemd:/x\n4:cpu,memory:/{path}\n0::/\n"
    (machine / "proc/self").mkdir(exist_ok=True)
    (machine / "proc/self/cgroup").write_text(line)


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_leaves_what_it_does_not_use(version: int, tmp_path: Path) -> None:
    machine = system(tmp_path)
    control_group(machine, version, "jobs/one", 8 * GIB, used=5 * GIB, file=2 * GIB)
    assert installed_bytes(machine)[0] == 8 * GIB
    value, how = available_bytes(machine)
    # Pages of files are given up before the limit is reached.
    assert value == 5 * GIB
    assert "control group" in how


@pytest.mark.parametrize("version", [1, 2])
def test_the_groups_around_count_and_ones_without_a_limit_do_not(version: int, tmp_path: Path) -> None:
    machine = system(tmp_path)
    control_group(machine, version, "jobs", 6 * GIB, used=2 * GIB, file=0)
    unlimited = "max" if version == 2 else 2**63 - 4096
    control_group(machine, version, "jobs/one", unlimited, used=GIB, file=0)
    assert available_bytes(machine)[0] == 4 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_that_sees_only_its_root_has_that_limit(version: int, tmp_path: Path) -> None:
    machine = system(tmp_path)
    control_group(machine, version, "", 8 * GIB, used=GIB, file=0)
    table = machine / "proc/self/cgroup"
    table.write_text(table.read_text().replace(":/\n", ":/docker/5d1f\n"))
    assert available_bytes(machine)[0] == 7 * GIB


def test_no_memory_left_is_said_and_the_rest_is_found(tmp_path: Path) -> None:
    machine = system(tmp_path)
    control_group(machine, 2, "jobs", 4 * GIB, used=4 * GIB, file=0)
    findings = Findings()
    measure(findings, machine)
    assert set(findings.quantities) == {"host.installed_memory_bytes"}
    (sentence,) = findings.missing
    assert "the memory that a process may use could not be measured" in sentence
    assert "leaves 0 bytes" in sentence


def test_a_busy_machine_is_said_to_be_busy(tmp_path: Path) -> None:
    calm, busy = Findings(), Findings()
    measure(calm, system(tmp_path / "calm"))
    measure(busy, system(tmp_path / "busy", load="512.00"))
    assert calm.missing == []
    assert "load 512.0" in busy.missing[0]
    assert busy.facts["cpu_name"] == "A CPU: fast"


def test_a_meminfo_without_a_total_is_refused(tmp_path: Path) -> None:
    machine = system(tmp_path)
    (machine / "proc/meminfo").write_text("MemFree: 1 kB\n")
    with pytest.raises(ValueError, match="MemTotal"):
        installed_bytes(machine)
    with pytest.raises(ValueError, match="MemAvailable"):
        available_bytes(machine)


def test_the_kernel_names_file_systems() -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(Path(os.path.realpath("/dev/shm"))) == "tmpfs"


@pytest.mark.parametrize("value, expected", [("", 0), ("2", 2), ("3,1", 3), ("9", 0), ("GPU-5d1f", 0)])
def test_the_first_gpu_is_the_first_visible_one(
    value: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert first_visible(4) == expected


@pytest.mark.parametrize("value", ["", "-1", "-1,0", "NoDevFiles"])
def test_hidden_gpus_are_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert used_gpu_bytes() == []
