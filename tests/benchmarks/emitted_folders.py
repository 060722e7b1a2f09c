"""Emitted folders run as users run them, for benchmarks on machines that have no planner."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def total_s(breakdown: dict[str, Any]) -> float:
    return sum(value for key, value in breakdown.items() if key != "source")


def generate(folder: Path, checkpoint: Path, work: Path, arguments: list[str]) -> Any:
    """Run a plan's script as its README says; what it reports."""
    report = work / "report.json"
    child([str(folder / "generate.py"), str(checkpoint), "--report", str(report), *arguments])
    return json.loads(report.read_text())


def child(command: list[str]) -> None:
    """Run a process of its own; its output ends ours if it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-5000:]}")
