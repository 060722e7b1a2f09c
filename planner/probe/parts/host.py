"""Cores and memory of the host, as the kernel grants them to this process. Nothing is timed."""

import os
from pathlib import Path
from typing import Final

from planner.probe.findings import Findings
from planner.probe.fits import Measurement

_CGROUP_LIMITS: Final = ("memory.max", "memory/memory.limit_in_bytes")
_CGROUP_QUOTA: Final = "cpu.max"
#: Processes that want to run, for each core, above which what is measured is not the machine's best.
_BUSY: Final = 0.3


def measure(findings: Findings, system: Path = Path("/")) -> None:
    """Cores, memory, the processor's name, and whether anything else runs.

    Args:
        findings: filled.
        system: the root of `proc` and `sys`; a test's own, or the machine's.
    """
    findings.facts["num_cores"] = num_cores(system)
    findings.facts["cpu_name"] = _cpu_name(system)
    load = float((system / "proc/loadavg").read_text().split()[0])
    if load > _BUSY * num_cores(system):
        findings.missing.append(
            f"the machine is not idle (load {load:.1f}), so rates are lower than they could be; probe again"
        )
    num_bytes, where = memory_bytes(system)
    findings.quantities["host.installed_memory_bytes"] = Measurement(
        value=num_bytes, spread=0.0, num_samples=1, method=where
    )


def memory_bytes(system: Path) -> tuple[int, str]:
    """What the kernel has, or a container's limit below it, and which of the two it is."""
    for line in (system / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
            break
    else:
        raise ValueError("/proc/meminfo has no MemTotal")
    limits = [
        int(text)
        for name in _CGROUP_LIMITS
        for file in [system / "sys/fs/cgroup" / name]
        if file.is_file() and (text := file.read_text().strip()).isdigit()
    ]
    smallest = min([total, *limits])
    return smallest, "MemTotal of /proc/meminfo" if smallest == total else "memory limit of the control group"


def num_cores(system: Path) -> int:
    """Physical cores that this process may use, at most the control group's share of them."""
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
    """Each processor's lines of /proc/cpuinfo."""
    blocks = (system / "proc/cpuinfo").read_text().split("\n\n")
    entries = [
        {key.strip(): value.strip() for key, at, value in (line.partition(":") for line in lines) if at}
        for lines in (block.splitlines() for block in blocks)
    ]
    return [entry for entry in entries if entry.get("processor", "").isdigit()]


def _cpu_name(system: Path) -> str:
    names = [entry["model name"] for entry in _processors(system) if "model name" in entry]
    return names[0] if names else os.uname().machine
