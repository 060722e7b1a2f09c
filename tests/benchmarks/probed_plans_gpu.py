"""A probe of one GPU, plans from that profile alone, and benchmarks of plans and baselines under memory caps.

`python tests/benchmarks/probed_plans_gpu.py OUT [--models opt-13b,gpt-j-6b] [--caps 16GiB,8GiB]` writes
OUT/here.toml, OUT/rows.jsonl and OUT/summary.json and prints the summary. It runs the planner's own
commands from this work tree; the planner need not be installed, but msgspec, highspy, platformdirs, click,
rich and networkx must be there beside torch, transformers and accelerate. A case that would begin after the
time limit is left out and listed. Nothing is read from earlier runs but random weights.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
PROMPT, NEW = 128, 8


class Case(NamedTuple):
    """One command of `planner bench`: its name, model and cap, what plans it, and its batches."""

    name: str
    model: str
    cap: str
    plan: tuple[str, ...]
    bench: tuple[str, ...]


def cases(models: list[str], caps: list[str]) -> list[Case]:
    """Every case, the most telling first."""
    found = []
    for kind, plan, bench in (
        ("latency", ("--batch", "1"), ()),
        ("accelerate-auto", (), ("--batch", "1,8,16", "--until-oom")),
        ("throughput", ("--objective", "throughput"), ()),
        ("batch-16", ("--batch", "16"), ()),
        ("largest-64", ("--batch", "64"), ("--batch", "8,16,64", "--until-oom")),
        ("batch-8", ("--batch", "8"), ()),
        ("resident", (), ("--batch", "1,16,64")),
        *([("zero-four-lines", (), ("--batch", "1,16"))] if importlib.util.find_spec("deepspeed") else []),
    ):
        for model in models:
            for cap in caps:
                if kind == "resident" and cap != caps[0]:
                    continue
                found.append(
                    Case(f"{model}:{cap}:{kind}", model, "" if kind == "resident" else cap, plan, bench)
                )
    return found


class Runner:
    """Runs the planner's commands and keeps what they took."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.begun = time.perf_counter()
        self.profile, self.rows = self.out / "here.toml", self.out / "rows.jsonl"
        self.log: list[dict[str, Any]] = []
        self.site = tempfile.TemporaryDirectory(prefix="metadata-")
        _write_metadata(Path(self.site.name))
        paths = [str(ROOT), self.site.name, os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def left_s(self) -> float:
        """Until the time limit."""
        return float(self.args.limit) - (time.perf_counter() - self.begun)

    def planner(self, name: str, *words: str) -> bool:
        """One command; whether it ended well."""
        start = time.perf_counter()
        done = subprocess.run(
            (sys.executable, "-m", "cli", *words),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=self.environment,
            timeout=max(1.0, self.left_s() + self.args.grace),
        )
        entry = {"name": name, "command": words[0], "status": done.returncode}
        entry["seconds"] = round(time.perf_counter() - start, 1)
        if done.returncode or words[0] != "plan":
            entry["said"] = done.stderr[-1500:]
        self.log.append(entry)
        print(f"{time.strftime('%X')} {json.dumps(entry)}", flush=True)
        return done.returncode == 0

    def case(self, case: Case) -> None:
        """Plan, if it is a plan's, and benchmark."""
        limits = ("--gpu-memory", case.cap) if case.cap and self.args.gpu else ()
        cap = ("--memory-cap", case.cap) if limits else ()
        kind = case.name.rsplit(":", 1)[1]
        lengths = ("--prompt", str(PROMPT), "--new-tokens", str(NEW))
        weights = ("--random-weights", str(Path(self.args.weights) / case.model), "--out", str(self.rows))
        rest = (*case.bench, *lengths, *cap, *weights, "--timeout", str(max(60.0, self.left_s())))
        if not case.plan:
            what = ("--baseline", kind, "--model", case.model, "--hardware", str(self.profile))
            self.planner(case.name, "bench", *what, "--dtype", self.args.dtype, *rest)
            return
        folder = self.out / "plans" / case.name.replace(":", "-")
        machine = ("--hardware", str(self.profile), "--cpu-memory", self.args.host_memory, *limits)
        words = ("plan", "--model", case.model, *machine, *lengths, *case.plan, "--out", str(folder))
        runtimes = [word for name in self.args.runtimes.split(",") for word in ("--runtime", name)]
        if self.planner(case.name, *words, *runtimes, "--dtype", self.args.dtype):
            self.planner(case.name, "bench", str(folder), *rest)


def _write_metadata(folder: Path) -> None:
    """What importlib.metadata reads of an installed package, for a work tree that is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )


def errors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Predicted over measured, less one, of every plan's and baseline's row that ran."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        one, said = row["measured"], row["predicted"]
        if one is None or said is None:
            continue
        steps = one["decode_s"]
        name = f"{row['model']}:{row['name']}:{row['memory_cap_bytes']}:{row['batch_size']}"
        found[name] = {
            "prefill": said["prefill_s"] / one["prefill_s"] - 1,
            "decode": said["decode_s"] / (sum(steps) / len(steps)) - 1,
        }
        if one["gpu_peak_reserved_bytes"]:
            found[name]["memory"] = max(said["gpu_bytes"]) / max(one["gpu_peak_reserved_bytes"]) - 1
    summary: dict[str, Any] = {}
    for what in ("prefill", "decode", "memory"):
        absolute = [abs(one[what]) for one in found.values() if what in one]
        if absolute:
            summary[what] = {"median": median(absolute), "worst": max(absolute), "rows": len(absolute)}
    return {"summary": summary, "rows": found}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Plans over `accelerate-auto` of the same model and cap: latency at batch 1, and the most tokens/s."""
    found = {}
    ran = [row for row in rows if row["measured"] is not None]
    for model, cap in sorted({(row["model"], row["memory_cap_bytes"] or 0) for row in ran}):
        mine = [r for r in ran if (r["model"], r["memory_cap_bytes"] or 0) == (model, cap)]
        stock = [r for r in mine if r["name"] == "accelerate-auto"]
        ours = [r for r in mine if r["name"] not in ("accelerate-auto", "resident", "cpu", "zero-four-lines")]
        if not stock or not ours:
            continue
        first = [min((_step(r) for r in part if r["batch_size"] == 1), default=0.0) for part in (stock, ours)]
        if all(first):
            found[f"{model}:{cap}: latency at batch 1, stock over ours"] = first[0] / first[1]
        most = [max(_tokens_per_s(r) for r in part) for part in (stock, ours)]
        found[f"{model}:{cap}: tokens/s, ours over stock"] = most[1] / most[0]
    return found


def largest(rows: Path) -> dict[str, Any]:
    """Largest batch that is called feasible, and that ran, where the largest was looked for."""
    from planner.accuracy.own import largest_batches

    if not rows.is_file():
        return {}
    return {
        f"{batch.model}:{batch.name}:{batch.memory_cap_bytes}": {"feasible": batch.feasible, "ran": batch.ran}
        for batch in largest_batches([rows])
    }


def _step(row: dict[str, Any]) -> float:
    steps = row["measured"]["decode_s"]
    return float(sum(steps) / len(steps))


def _tokens_per_s(row: dict[str, Any]) -> float:
    total = row["measured"]["prefill_s"] + (row["new_tokens"] - 1) * _step(row)
    return float(row["batch_size"] * row["new_tokens"] / total)


def main() -> None:
    """Probe, plan, benchmark, sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--models", default="opt-13b,gpt-j-6b")
    parser.add_argument("--caps", default="16GiB,8GiB")
    parser.add_argument("--only", default="", help="words with commas; a case's name must contain one")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--runtimes", default="accelerate", help="that plans may use, with commas")
    parser.add_argument("--weights", default="/tmp/random-weights", help="folder; 37 GB for both models")
    parser.add_argument("--host-memory", default="110GiB", help="what plans may fill of it")
    parser.add_argument("--profile", type=Path, help="take this profile instead of probing")
    parser.add_argument("--limit", type=float, default=500.0, help="seconds after which no case begins")
    parser.add_argument(
        "--grace", type=float, default=60.0, help="seconds that the last case may take beyond"
    )
    parser.add_argument("--no-gpu", dest="gpu", action="store_false", help="rehearse on the CPU, uncapped")
    args = parser.parse_args()
    runner = Runner(args)
    sys.path[:0] = [str(ROOT), runner.site.name]
    if args.profile is not None:
        runner.profile.write_bytes(args.profile.read_bytes())
    elif not runner.planner("probe", "probe", "--out", str(runner.profile)):
        raise SystemExit("the probe failed")
    wanted = [
        case for case in cases(args.models.split(","), args.caps.split(",")) if _is_wanted(case, args.only)
    ]
    left_out = []
    for case in wanted:
        if runner.left_s() < args.grace:
            left_out.append(case.name)
            continue
        try:
            runner.case(case)
        except subprocess.TimeoutExpired:
            runner.log.append({"name": case.name, "status": "out of time"})
        _sum_up(runner, left_out)
    print(json.dumps(_sum_up(runner, left_out), indent=1))


def _is_wanted(case: Case, only: str) -> bool:
    return any(word in case.name for word in only.split(","))


def _sum_up(runner: Runner, left_out: list[str]) -> dict[str, Any]:
    """Everything that is known so far, written after each case."""
    text = runner.rows.read_text() if runner.rows.is_file() else ""
    records = [json.loads(line) for line in text.splitlines()]
    rows = [record for record in records if record["kind"] == "row"]
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "profile": runner.profile.read_text().splitlines()[:6],
        "errors": errors(rows),
        "ratios": ratios(rows),
        "largest_batch": largest(runner.rows),
        "did_not_run": [(r["name"], r["batch_size"], r["said"][:200]) for r in rows if r["status"] != "ok"],
        "left_out": left_out,
        "commands": runner.log,
        "elapsed_s": round(time.perf_counter() - runner.begun, 1),
    }
    (runner.out / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary


if __name__ == "__main__":
    main()
