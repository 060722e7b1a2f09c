"""What it saves that emitted Accelerate scripts keep the allocator's pages, on one capped GPU.

`python tests/benchmarks/kept_pages_gpu.py OUT --profile here.toml [--models gpt-j-6b,opt-13b] [--cap 8GiB]`
plans each model for throughput and benchmarks the folder twice in one run: as it is emitted, and without the
line that stops Accelerate from emptying the allocator for every weight. Prints and writes both, and their
ratio. Needs what `probed_plans_gpu.py` needs, whose runner it takes.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from probed_plans_gpu import NEW, PROMPT, Runner

_KEEPS: Final = "    keep_pages()\n    return"
_LENGTHS: Final = ("--prompt", str(PROMPT), "--new-tokens", str(NEW))


def emptied(folder: Path) -> Path:
    """A copy of an emitted folder that leaves Accelerate as it comes."""
    copy = folder.with_name(f"{folder.name}-emptied")
    shutil.copytree(folder, copy)
    script = copy / "generate.py"
    text = script.read_text()
    if _KEEPS not in text:
        raise SystemExit(f"{script} does not keep pages, so there is nothing to compare")
    script.write_text(text.replace(_KEEPS, "    return"))
    return copy


def measured(runner: Runner, folder: Path, model: str, cap: str) -> dict[str, Any]:
    """The one row of a folder at its own batch."""
    out = runner.out / f"{folder.name}.jsonl"
    weights = ("--random-weights", str(Path(runner.args.weights) / model), "--out", str(out))
    if not runner.planner(folder.name, "bench", str(folder), *_LENGTHS, "--memory-cap", cap, *weights):
        raise SystemExit(f"{folder.name} did not run")
    (row,) = [one for one in map(json.loads, out.read_text().splitlines()) if one["kind"] == "row"]
    if row["measured"] is None:
        raise SystemExit(f"{folder.name}: {row['said']}")
    return {
        "batch_size": row["batch_size"],
        "prefill_s": row["measured"]["prefill_s"],
        "decode_s": median(row["measured"]["decode_s"]),
        "gpu_peak_allocated_bytes": row["measured"]["gpu_peak_allocated_bytes"],
        "gpu_peak_reserved_bytes": row["measured"]["gpu_peak_reserved_bytes"],
        "versions": row["versions"],
    }


def compared(runner: Runner, model: str, cap: str) -> dict[str, Any]:
    """One model's plan both ways."""
    folder = runner.out / "plans" / f"{model}-{cap}"
    machine = (
        "--hardware",
        str(runner.profile),
        "--gpu-memory",
        cap,
        "--cpu-memory",
        runner.args.host_memory,
    )
    words = ("--model", model, "--objective", "throughput", "--runtime", "accelerate", "--dtype", "float16")
    if not runner.planner(f"{model} {cap}", "plan", *words, *machine, *_LENGTHS, "--out", str(folder)):
        raise SystemExit(f"{model} cannot be planned for {cap}")
    kept = measured(runner, folder, model, cap)
    without = measured(runner, emptied(folder), model, cap)
    ratios = {name: without[name] / kept[name] for name in ("prefill_s", "decode_s")}
    return {"model": model, "memory_cap": cap, "kept": kept, "emptied": without, "emptied_over_kept": ratios}


def main() -> None:
    """Every model, both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--profile", type=Path, required=True, help="what `planner probe` wrote here")
    parser.add_argument("--models", default="gpt-j-6b,opt-13b")
    parser.add_argument("--cap", default="8GiB")
    parser.add_argument("--weights", default="/tmp/random-weights")
    parser.add_argument("--host-memory", default="110GiB")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds that everything may take")
    parser.add_argument("--grace", type=float, default=0.0)
    args = parser.parse_args()
    runner = Runner(args)
    runner.profile.write_bytes(args.profile.read_bytes())
    rows = [compared(runner, model, args.cap) for model in args.models.split(",")]
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "profile": runner.profile.read_text().split("\n")[1],
        "rows": rows,
    }
    (runner.out / "kept_pages.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
