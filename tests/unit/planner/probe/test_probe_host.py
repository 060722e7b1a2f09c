"""Cores and memory as a kernel's files tell them; real files, in a folder of the test's own."""

import os
from pathlib import Path

import pytest

from planner.probe.findings import Findings
from planner.probe.parts.disk import file_system
from planner.probe.parts.host import measure, memory_bytes, num_cores
from planner.probe.run import first_visible


def system(folder: Path, *, threads_per_core: int = 1, load: str = "0.00") -> Path:
    """A machine whose processors are those that this process may use, so many to a core."""
    (folder / "proc").mkdir(parents=True)
    (folder / "sys/fs/cgroup").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\n")
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
    found, where = memory_bytes(machine)
    assert found == expected
    assert ("control group" in where) == (expected != 16 * 2**30)


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
        memory_bytes(machine)


def test_the_kernel_names_file_systems() -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(Path(os.path.realpath("/dev/shm"))) == "tmpfs"


@pytest.mark.parametrize("value, expected", [("", 0), ("2", 2), ("3,1", 3), ("9", 0), ("GPU-5d1f", 0)])
def test_the_first_gpu_is_the_first_visible_one(
    value: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert first_visible(4) == expected
