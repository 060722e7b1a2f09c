"""OPT-13B of random weights on one capped GPU: stock `device_map="auto"` against emitted plans, in one run.

`python tests/benchmarks/gpu_opt13b.py OUT.json CAP_GIB PLAN...` makes the checkpoint once, runs the
baseline and every emitted plan folder in a process of its own under the same memory cap, and prints
predicted beside measured and the ratios. Nothing of the planner is imported: plans run as users run them.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GIB = 2**30
CHECKPOINT = Path(os.environ.get("BENCHMARK_CHECKPOINT", "/tmp/opt-13b-random"))
PROMPT, NEW = 128, 8

# The variable must be set before torch is imported; the emitted script sets it too, but comes later here.
CAPPED = """
import os, runpy, sys
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
import torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction({cap} / total)
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""

BASELINE = """
import gc, json, statistics, sys, time, torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction({cap} / total)
start = time.perf_counter()
# What from_pretrained would take of an empty GPU of this size by itself: 90 %.
model = AutoModelForCausalLM.from_pretrained({checkpoint!r}, dtype=torch.float16, device_map="auto",
    max_memory={{0: int(0.9 * {cap}), "cpu": 100 * 2**30}})
load_s = time.perf_counter() - start
class Clock(LogitsProcessor):
    def __init__(self): self.times = []
    def __call__(self, ids, scores):
        torch.cuda.synchronize(); self.times.append(time.perf_counter()); return scores
rows = []
for batch in (1, 1, 8, 16, 20, 24, 32):
    ids = torch.randint(3, 50000, (batch, {prompt}), device=0)
    torch.cuda.reset_peak_memory_stats()
    clock = Clock(); torch.cuda.synchronize(); t = time.perf_counter()
    try:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens={new},
            min_new_tokens={new}, do_sample=False, logits_processor=LogitsProcessorList([clock]))
    except torch.OutOfMemoryError:
        rows.append(dict(batch=batch, out_of_memory=True)); gc.collect(); torch.cuda.empty_cache(); continue
    steps = [b - a for a, b in zip(clock.times, clock.times[1:])]
    rows.append(dict(batch=batch, prefill_s=clock.times[0] - t, step_s=statistics.median(steps),
        tokens_per_s=batch * {new} / (clock.times[-1] - t), peak_allocated=torch.cuda.max_memory_allocated(),
        peak_reserved=torch.cuda.max_memory_reserved()))
json.dump(dict(load_s=load_s, rows=rows[1:]), open({out!r}, "w"))
"""


def make_checkpoint() -> float:
    """Random weights of OPT-13B's shape, as sharded safetensors; seconds it took."""
    if (CHECKPOINT / "config.json").exists():
        return 0.0
    code = f"""
import torch
from transformers import OPTConfig, OPTForCausalLM
config = OPTConfig(hidden_size=5120, ffn_dim=20480, num_hidden_layers=40, num_attention_heads=40,
    word_embed_proj_dim=5120, vocab_size=50272, max_position_embeddings=2048, dtype="float16")
with torch.device("meta"):
    model = OPTForCausalLM(config)
model = model.to(torch.float16).to_empty(device="cuda").eval()
for p in model.parameters():
    p.data.normal_(0, 0.02)
model.tie_weights()
model.save_pretrained({str(CHECKPOINT)!r}, max_shard_size="4GB")
"""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def child(code: str) -> tuple[int, str]:
    """Run `code` in a process of its own; its status and the end of what it said."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout[-300:] + done.stderr[-700:]).strip()


def run_plan(folder: Path, cap: int, out: Path) -> dict[str, Any]:
    """One emitted folder: predicted and measured."""
    plan = json.loads((folder / "plan.json").read_text())
    argv = [
        str(folder / "generate.py"),
        str(CHECKPOINT),
        "--prompt-tokens",
        str(PROMPT),
        "--new-tokens",
        str(NEW),
    ]
    argv += ["--ignore-eos", "--repeat", "2", "--report", str(out)]
    status, said = child(CAPPED.format(cap=cap, argv=argv))
    row = {"plan": folder.name, "batch": plan["workload"]["batch_size"], "kv_cache": plan["kv_cache"]}
    row["predicted"] = summary(plan)
    if status:
        return {**row, "status": status, "said": said}
    measured = json.loads(out.read_text())
    total_s = measured["prefill_s"] + sum(measured["decode_s"])
    row["measured"] = {
        "prefill_s": measured["prefill_s"],
        "step_s": statistics.median(measured["decode_s"]),
        "tokens_per_s": row["batch"] * NEW / total_s,
        "gpu_bytes": measured["gpu_peak_reserved_bytes"][0],
        "gpu_allocated_bytes": measured["gpu_peak_allocated_bytes"][0],
        "host_bytes": measured["host_peak_rss_bytes"],
        "load_s": measured["load_s"],
    }
    return row


def summary(plan: dict[str, Any]) -> dict[str, float]:
    """The prediction in the same terms: GPU bytes without the context, as the allocator counts them."""
    prediction = plan["prediction"]

    def total(device: str) -> float:
        parts = ("weights", "kv", "activations", "staging", "slack")
        phases = prediction["memory"][device].values()
        return max(sum(phase[part] for part in parts) for phase in phases)

    return {
        "prefill_s": sum(v for k, v in prediction["time"]["prefill"].items() if k != "source"),
        "step_s": sum(v for k, v in prediction["time"]["decode"].items() if k != "source"),
        "tokens_per_s": prediction["tokens_per_s"],
        "gpu_bytes": total("gpu:0"),
        "host_bytes": total("cpu") + prediction["memory"]["cpu"]["decode"]["context"],
    }


def table(result: dict[str, Any]) -> str:
    """Everything as text, ratios last."""
    lines = [
        "how                      batch  prefill s     step s   tokens/s   GPU GiB  host GiB",
        "(ours: predicted/measured)",
    ]
    for row in result["baseline"]["rows"]:
        if row.get("out_of_memory"):
            lines.append(f"stock auto               {row['batch']:5d}  out of memory")
        else:
            lines.append(
                f"stock auto               {row['batch']:5d}  {row['prefill_s']:9.3f}  {row['step_s']:9.3f}  "
                f"{row['tokens_per_s']:9.2f}  {row['peak_reserved'] / GIB:8.2f}"
            )
    for row in result["plans"]:
        p, m = row["predicted"], row.get("measured")
        if m is None:
            lines.append(f"{row['plan']:24s} {row['batch']:5d}  FAILED {row['status']}: {row['said'][-400:]}")
            continue
        cells = [f"{p[k]:.3f}/{m[k]:.3f}" for k in ("prefill_s", "step_s")]
        cells += [f"{p['tokens_per_s']:.1f}/{m['tokens_per_s']:.1f}"]
        cells += [f"{p[k] / GIB:.1f}/{m[k] / GIB:.1f}" for k in ("gpu_bytes", "host_bytes")]
        lines.append(
            f"{row['plan']:24s} {row['batch']:5d}  " + "  ".join(cells) + f"  load {m['load_s']:.0f} s"
        )
    lines += [f"{name}: {value:.2f}" for name, value in result.get("ratios", {}).items()]
    return "\n".join(lines)


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Ours over stock, from this run alone."""
    stock = [r for r in result["baseline"]["rows"] if not r.get("out_of_memory")]
    ours = [r for r in result["plans"] if "measured" in r]
    first = [r["measured"]["step_s"] for r in ours if r["batch"] == 1]
    found = {}
    if stock and first:
        found["latency at batch 1, stock over ours"] = stock[0]["step_s"] / min(first)
    if stock and ours:
        best = max(r["tokens_per_s"] for r in stock)
        found["best tokens/s, ours over stock"] = max(r["measured"]["tokens_per_s"] for r in ours) / best
    return found


def main(out: Path, cap_gib: float, plans: list[Path]) -> None:
    """Run it all; what is done is on disk after every case."""
    cap = int(cap_gib * GIB)
    import torch
    import transformers

    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(),
        "cap_gib": cap_gib,
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "checkpoint_s": make_checkpoint(),
        "plans": [],
    }
    scratch = out.with_suffix(".part.json")
    code = BASELINE.format(cap=cap, checkpoint=str(CHECKPOINT), prompt=PROMPT, new=NEW, out=str(scratch))
    status, said = child(code)
    result["baseline"] = json.loads(scratch.read_text()) if status == 0 else {"rows": [], "said": said}
    print(time.strftime("%X"), "baseline", status, said[-500:] if status else "", flush=True)
    for folder in plans:
        result["plans"].append(run_plan(folder, cap, scratch))
        print(time.strftime("%X"), json.dumps(result["plans"][-1]), flush=True)
        out.write_text(json.dumps({**result, "ratios": ratios(result)}, indent=1))
    result["ratios"] = ratios(result)
    print(table(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), [Path(p) for p in sys.argv[3:]])
