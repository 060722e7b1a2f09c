"""A probe of the processor, plans for it from that profile alone, and benchmarks at several batches.

`python tests/benchmarks/probed_plans_cpu.py OUT` writes OUT/here.toml and OUT/rows.jsonl, by the commands
that users type; `planner accuracy --rows OUT/rows.jsonl` then sets predicted beside measured. It takes about
ten minutes on two cores; the weights are random, of the real shape.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
#: Families that attend and norm each in their own way, in the dtypes that people run on processors.
RUNS: Final = (
    ("opt-125m", "float32"),
    ("opt-125m", "bfloat16"),
    ("opt-125m", "float16"),
    ("gpt2-medium", "float32"),
    ("gpt2-medium", "bfloat16"),
    ("bloom-560m", "float32"),
    ("bloom-560m", "bfloat16"),
    ("opt-1.3b", "bfloat16"),
)
LENGTHS: Final = ("--prompt", "128", "--new-tokens", "16")


def planner(*words: str) -> None:
    """One command, its output shown."""
    print("$ planner", *words, flush=True)
    subprocess.run((sys.executable, "-m", "cli", *words), check=True, cwd=ROOT)


def main() -> None:
    """Probe, plan, benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", default="1,4,8,16,32")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    profile = str(out / "here.toml")
    planner("probe", "--out", profile)
    for model, dtype in RUNS:
        folder = str(out / "plans" / f"{model}-{dtype}")
        what = ("--model", model, "--dtype", dtype, "--runtime", "cpu", *LENGTHS)
        planner("plan", "--hardware", profile, "--gpus", "0", *what, "--out", folder)
        planner("bench", folder, "--batch", args.batch, "--out", str(out / "rows.jsonl"))


if __name__ == "__main__":
    main()
