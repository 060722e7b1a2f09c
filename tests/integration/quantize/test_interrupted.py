"""Killed and run again: the same bytes; and memory that stays within what was asked for."""

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.reshard.children import REPOSITORY, contents, llama, names

#: A slow disk, small batches, and a word when the first byte is about to be moved.
_SLOWLY = """
import os, time
import reshard.run as run
fill, pwrite = run._fill, os.pwrite
def telling(*arguments):
    print("begun", flush=True)
    return fill(*arguments)
def slow(*arguments):
    time.sleep(0.01)
    return pwrite(*arguments)
run._fill, os.pwrite, run._BATCH_BYTES = telling, slow, 1 << 15
"""
SCHEMES = {
    "compressed-tensors": ["--group-size", "32"],
    "moq": ["--scheme", "moq", "--groups", "16", "--tp", "2"],
}


def child(program: str, *arguments: object) -> "subprocess.Popen[str]":
    code = f"{program}\nfrom cli.quantize import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("scheme", SCHEMES)
def test_killed_at_random_moments(scheme: str, work: Path) -> None:
    chance = random.Random(scheme)
    source = llama(work / "model", layers=2, hidden=64)
    arguments = (source, *SCHEMES[scheme], "--jobs", "2", "--json", "--output")
    finished(child("", *arguments, work / "expected"))
    expected = contents(work / "expected")
    output = work / "place" / "out"
    output.parent.mkdir()
    for _ in range(4):
        process = child(_SLOWLY, *arguments, output)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0.0, 0.12))
        process.kill()
        process.communicate()
        if output.exists():
            assert contents(output) == expected
            break
    else:
        out = finished(child("", *arguments, output))
        resumed = re.search(r'"resumed": (\d+)', out)
        assert resumed is not None
        # Tensors of the first batches need not be encoded again.
        assert int(resumed[1]) > 0
    assert contents(output) == expected
    assert names(output.parent) == {"out"}


def test_memory_stays_within_the_budget(work: Path) -> None:
    """300 MB through 256 MiB, of which the interpreter and the compiled code take a half."""
    source = llama(work / "model", layers=6, hidden=1664)
    size_bytes = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    assert size_bytes > 280e6
    budget_bytes = 256 << 20
    process = child("", source, "--memory", "256MiB", "--jobs", "2", "--output", work / "out")
    peak_bytes = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
        # A process that has ended and is not waited for yet has no memory.
        peak_bytes = max(peak_bytes, int(found[1]) << 10 if found else 0)
        time.sleep(0.005)
    finished(process)
    assert 20 << 20 < peak_bytes < budget_bytes
    assert sum(p.stat().st_size for p in (work / "out").glob("*.safetensors")) < 0.6 * size_bytes
