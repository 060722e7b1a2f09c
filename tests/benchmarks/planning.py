"""Wall time and peak memory of planning, each in a fresh process. `python tests/benchmarks/planning.py`.

Reports, with the machine, versions and date; decides nothing.
"""

import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Final

_PLANNER: Final = (sys.executable, "-m", "cli")
_TRACE_BLOOM: Final = """
from planner.models.build import build
from planner.models.resolve import resolve
from planner.tracing.trace import trace
config, model_class = build(resolve("bloom-176b"))
import time
start = time.perf_counter()
graph = trace(config, model_class, generates=True)
print(f"    of which tracing, after imports: {time.perf_counter() - start:.2f} s, {len(graph.nodes)} modules")
"""
_CASES: Final = {
    "planner --help": (*_PLANNER, "--help"),
    "planner hardware list": (*_PLANNER, "hardware", "list"),
    "plan gpt-j-6b on v100-16g": (*_PLANNER, "plan", "--model", "gpt-j-6b", "--hardware", "v100-16g"),
    "plan opt-30b on t4, throughput": (
        *(*_PLANNER, "plan", "--model", "opt-30b", "--hardware", "t4"),
        *("--objective", "throughput", "--prompt", "512", "--new-tokens", "32"),
    ),
    "plan bloom-176b on 8xa100-80g, throughput": (
        *(*_PLANNER, "plan", "--model", "bloom-176b", "--hardware", "8xa100-80g"),
        *("--objective", "throughput"),
    ),
    "trace bloom-176b": (sys.executable, "-c", _TRACE_BLOOM),
}


def _measure(command: tuple[str, ...]) -> tuple[float, int, str]:
    """Wall seconds, peak resident bytes and standard output of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    elapsed_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:6])} … ended with status {process.returncode}")
    return elapsed_s, _peak_bytes(usage), output


def _peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * 1024  # Linux counts in KiB


def _main() -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "highspy"))
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, {versions}")
    print(f"{'':44}{'first s':>9}{'median s':>10}{'peak MB':>9}")
    for label, command in _CASES.items():
        runs = [_measure(command) for _ in range(4)]
        median_s = statistics.median(elapsed_s for elapsed_s, _, _ in runs[1:])
        peak_bytes = max(peak for _, peak, _ in runs)
        print(f"{label:44}{runs[0][0]:9.2f}{median_s:10.2f}{peak_bytes / 1e6:9.0f}")
        if label.startswith("trace"):
            print(runs[-1][2].rstrip("\n"))


if __name__ == "__main__":
    _main()
