"""Cores and memory of the host that the kernel grants to this process. Nothing is timed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from planner.probe.findings import Findings
from planner.probe.fits import Measurement
from planner.probe.parts import memory

_CGROUP_QUOTA: Final = "cpu.max"
#: Load per core above which the machine counts as busy, so that measured rates are too low.
_BUSY: Final = 0.3


def measure(findings: Findings, system: Path = Path("/")) -> None:
    """Read the cores, the memory and the processor's name, and check that the machine is idle.

    Args:
        findings: the results are added to it.
        system: folder that contains `proc` and `sys`.
    """
    findings.facts["num_cores"] = num_cores(system)
    findings.facts["cpu_name"] = _cpu_name(system)
    load = float((system / "proc/loadavg").read_text().split()[0])
    if load > _BUSY * num_cores(system):
        findings.missing.append(
            f"the machine is not idle (load {load:.1f}), so measured rates may be too low; probe again"
        )
    for path, what, read in (
        ("host.installed_memory_bytes", "the installed memory", memory.installed_bytes),
        ("host.memory_bytes", "the memory that a process may use", memory.available_bytes),
    ):
        findings.attempt(what, _reading(path, read, system))


def _reading(path: str, read: Callable[[Path], tuple[int, str]], system: Path) -> Callable[[Findings], None]:
    def run(findings: Findings) -> None:
        value, how = read(system)
        findings.quantities[path] = Measurement(value=value, spread=0.0, num_samples=1, method=how)

    return run


def num_cores(system: Path) -> int:
    """Physical cores that this process may use, limited by the control group's CPU quota."""
    usable = os.sched_getaffinity(0)
    cores = {
        (entry.get("physical id", "0"), entry.get("core id", entry["processor"]))
        for entry in _processors(system)
        if int(entry["processor"]) in usable
    }
    quota = system / "sys/fs/cgroup" / _CGROUP_QUOTA
    allowed, _, period = quota.read_text().strip().partition(" ") if quota.is_file() else ("max", "", "")
    share = max(1, round(int(allowed) / int(period))) if allowed.isdigit() else len(usable)
    return max(1, min(len(cores) or len(usable), share))


def _processors(system: Path) -> list[dict[str, str]]:
    """The entries of /proc/cpuinfo, one for each logical processor."""
    blocks = (system / "proc/cpuinfo").read_text().split("\n\n")
    entries = [
        {key.strip(): value.strip() for key, at, value in (line.partition(":") for line in lines) if at}
        for lines in (block.splitlines() for block in blocks)
    ]
    return [entry for entry in entries if entry.get("processor", "").isdigit()]


def _cpu_name(system: Path) -> str:
    names = [entry["model name"] for entry in _processors(system) if "model name" in entry]
    return names[0] if names else os.uname().machine
