"""The same question gets the same plan in every process, whatever order its sets have."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_plan_does_not_depend_on_the_process(seed: str) -> None:
    """Streamed matrices of equal size are equally good: what is chosen among them must not vary."""
    question = ("--hardware", "t4", "--model", "opt-30b", "--batch", "4", "--prompt", "512", "--json")
    command = [sys.executable, "-m", "cli", "plan", *question, "--runtime", "accelerate"]
    plans = [
        subprocess.run(
            command, capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": one}
        ).stdout
        for one in ("0", seed)
    ]
    assert plans[0].startswith(b"{")
    assert plans[0] == plans[1]
