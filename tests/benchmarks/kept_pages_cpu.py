"""What it saves on a processor that emitted scripts have the C library keep pages.

`python tests/benchmarks/kept_pages_cpu.py OUT.md` probes this machine, then benchmarks each model's plan and
the baseline `cpu`, which leaves the C library as it comes, one after the other. Writes their times, host
memory and ratios. About ten minutes on two cores; the weights are random, of the real shape.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from planner.hardware.load import load

ROOT: Final = Path(__file__).resolve().parents[2]
#: Model, dtype, batch, prompt. The last one's blocks of memory are all small.
RUNS: Final = (
    ("opt-125m", "bfloat16", 256, 256),
    ("bloom-560m", "bfloat16", 32, 128),
    ("gpt2-medium", "float32", 32, 128),
    ("opt-1.3b", "bfloat16", 16, 128),
    ("opt-125m", "float32", 4, 128),
)
_HEADS: Final = (
    "model", "dtype", "batch", "prompt", "prefill s", "plain / kept", "step ms", "plain / kept", "peak GiB",
    "kept / plain",
)  # fmt: skip


def planner(*words: str) -> str:
    """One command's output."""
    print("$ planner", *words, flush=True)
    return subprocess.run(
        (sys.executable, "-m", "cli", *words), check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).stdout


def benched(*words: str) -> dict[str, Any]:
    """The one row of a benchmark."""
    (row,) = json.loads(planner("bench", *words, "--json"))
    found: dict[str, Any] = row
    return found


def line(work: Path, profile: str, model: str, dtype: str, batch: int, prompt: int) -> tuple[Any, ...]:
    """One model both ways, as a row of the table, and the versions that ran."""
    lengths = ("--prompt", str(prompt), "--new-tokens", "16", "--batch", str(batch))
    what = ("--model", model, "--hardware", profile, "--dtype", dtype)
    folder, weights = str(work / f"{model}-{dtype}"), ("--random-weights", str(work / f"w-{model}-{dtype}"))
    planner("plan", *what, "--runtime", "cpu", *lengths, "--out", folder)
    kept = benched(folder, *lengths[:4], *weights)
    plain = benched("--baseline", "cpu", *what, *lengths, *weights)
    one, other = kept["measured"], plain["measured"]
    steps = [sum(each["decode_s"]) / len(each["decode_s"]) for each in (one, other)]
    peaks = [each["host_peak_bytes"] / 2**30 for each in (one, other)]
    return (
        model, dtype, batch, prompt,
        f"{one['prefill_s']:.2f}", f"{other['prefill_s'] / one['prefill_s']:.2f}",
        f"{steps[0] * 1e3:.0f}", f"{steps[1] / steps[0]:.2f}",
        f"{peaks[0]:.2f}", f"{peaks[0] / peaks[1]:.2f}",
        kept["versions"],
    )  # fmt: skip


def main() -> None:
    """Probe, then every model both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        profile = str(work / "here.toml")
        planner("probe", "--out", profile)
        machine = load(profile).description
        rows = [line(work, profile, *run) for run in RUNS]
    versions = ", ".join(f"{name} {version}" for name, version in rows[0][-1].items())
    table = [_HEADS, ("---",) * len(_HEADS), *(row[:-1] for row in rows)]
    text = "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in table)
    title = "# Pages that the C library keeps, on a processor"
    how = (
        f"{datetime.date.today()}, {machine}, {versions}. 16 new tokens;\n`kept` is an emitted plan, "
        "`plain` the baseline `cpu`, both by `planner bench` in one run of\n"
        "`tests/benchmarks/kept_pages_cpu.py`. Peaks are resident sets while generating."
    )
    args.out.write_text(f"{title}\n\n{how}\n\n{text}\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
