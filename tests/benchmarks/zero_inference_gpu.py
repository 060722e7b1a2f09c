"""ZeRO-Inference plans run from their emitted folders on a GPU: predicted beside measured.

In two steps, because the machine with the GPU may not have this project's packages:

    python tests/benchmarks/zero_inference_gpu.py plan PLANS [h100]
    python tests/benchmarks/zero_inference_gpu.py run PLANS OUT.json

The first writes a folder for each case. The second makes a checkpoint of random weights (of the shape of
OPT-6.7B, in BENCHMARK_CHECKPOINT or a temporary folder), runs the generate.py of every folder with the memory
of the GPU capped to what was planned with, and prints and writes predicted and measured. With host memory for
30 GiB it takes three to four minutes.

streamed    nothing kept but vectors, batch 1: what hooks and tensors cost besides the copies.
latency     as much kept as 8 GiB hold, batch 1.
batch       the same machine, batch 32.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_GIB: Final = 2**30
_MODEL: Final = "opt-6.7b"
_SHAPE: Final = {
    "hidden_size": 4096,
    "ffn_dim": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "word_embed_proj_dim": 4096,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
}
_PROMPT_TOKENS, _NEW_TOKENS = 128, 12
#: Name → memory of the GPU, and batch.
_CASES: Final = {"streamed": (3 * _GIB, 1), "latency": (8 * _GIB, 1), "batch": (8 * _GIB, 32)}

#: The cap is on what PyTorch takes; the context lies beside it.
_CAPPED: Final = """
import os, runpy, sys
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
import torch
torch.cuda.set_per_process_memory_fraction({cap} / torch.cuda.get_device_properties(0).total_memory)
sys.argv = {argv!r}
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""

_CHECKPOINT: Final = """
import torch
from transformers import OPTConfig, OPTForCausalLM
with torch.device("meta"):
    model = OPTForCausalLM(OPTConfig(**{shape}, dtype="float16"))
model = model.to(torch.float16).to_empty(device="cuda").eval()
for parameter in model.parameters():
    parameter.data.normal_(0, 0.02)
model.tie_weights()
model.save_pretrained({folder!r}, max_shard_size="4GB")
"""


def plan(plans: Path, hardware: str) -> None:
    """Write a folder for each case."""
    sys.path.insert(0, str(_ROOT))
    from fixtures.plans import plan_with
    from planner.hardware.load import load
    from planner.hardware.overrides import apply
    from planner.runtimes.folder import write_folder
    from planner.runtimes.zero_inference.emit import emit
    from planner.runtimes.zero_inference.model import RUNTIME_MODEL
    from planner.schema.workload import Workload

    for name, (memory_bytes, batch_size) in _CASES.items():
        profile = apply(load(hardware), gpu_memory_bytes=memory_bytes, num_gpus=1)
        way = next(one for one in RUNTIME_MODEL.configurations(profile) if one.streams_from == ("cpu",))
        workload = Workload(
            batch_size=batch_size, prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS, dtype="float16"
        )
        made, graph = plan_with(_MODEL, profile, RUNTIME_MODEL, way, workload)
        write_folder(made, emit(made, graph), plans / name)


def run(plans: Path, out: Path) -> None:
    """Run every case; what is done is in the file after each of them."""
    import torch

    given = os.environ.get("BENCHMARK_CHECKPOINT")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(given) if given else Path(scratch) / "checkpoint"
        result: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "device": torch.cuda.get_device_name(),
            "model": _MODEL,
            "prompt_tokens": _PROMPT_TOKENS,
            "new_tokens": _NEW_TOKENS,
            "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
            "checkpoint_s": _make(checkpoint),
            "cases": {},
        }
        print(json.dumps(result), flush=True)
        for name in _CASES:
            result["cases"][name] = _case(plans / name, checkpoint, Path(scratch))
            print(name, json.dumps(result["cases"][name]), flush=True)
            out.write_text(json.dumps(result, indent=1) + "\n")


def _make(checkpoint: Path) -> float:
    if (checkpoint / "config.json").exists():
        return 0.0
    start = time.perf_counter()
    code = _CHECKPOINT.format(shape=_SHAPE, folder=str(checkpoint))
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def _case(folder: Path, checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """One folder: predicted and measured."""
    made = json.loads((folder / "plan.json").read_text())
    gpu = made["hardware"]["gpu"]
    cap = gpu["memory_bytes"]["value"] - gpu["context_bytes"]["value"]
    report = scratch / "report.json"
    # Twice, and the second counts: DeepSpeed records the order of modules first.
    argv = [str(folder / "generate.py"), str(checkpoint), "--ignore-eos", "--repeat", "2"]
    argv += ["--prompt-tokens", str(_PROMPT_TOKENS), "--report", str(report)]
    code = _CAPPED.format(cap=cap, argv=argv)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    row: dict[str, Any] = {
        "batch": made["workload"]["batch_size"],
        "kept_bytes": sum(p["num_bytes"] for p in made["placements"] if p["stored_on"] == p["runs_on"]),
        "wall_s": time.perf_counter() - start,
        "predicted": _predicted(made),
    }
    if done.returncode:
        return {**row, "status": done.returncode, "said": (done.stdout[-300:] + done.stderr[-1500:]).strip()}
    found = json.loads(report.read_text())
    row["measured"] = {
        "load_s": found["load_s"],
        "prefill_s": found["prefill_s"],
        "step_s": statistics.median(found["decode_s"]),
        "gpu_bytes": found["gpu_peak_reserved_bytes"][0],
        "gpu_allocated_bytes": found["gpu_peak_allocated_bytes"][0],
        "host_bytes": found["host_peak_rss_bytes"],
    }
    return row


def _predicted(made: dict[str, Any]) -> dict[str, float]:
    """In the same terms; GPU bytes without the context, as the allocator counts them."""
    prediction = made["prediction"]

    def total(device: str, *, context: bool) -> float:
        parts = ["weights", "kv", "activations", "staging", "slack", *(["context"] if context else [])]
        return max(sum(phase[part] for part in parts) for phase in prediction["memory"][device].values())

    def seconds(phase: str) -> float:
        return sum(value for name, value in prediction["time"][phase].items() if name != "source")

    return {
        "load_s": prediction["load_s"],
        "prefill_s": seconds("prefill"),
        "step_s": seconds("decode"),
        "gpu_bytes": total("gpu:0", context=False),
        "host_bytes": total("cpu", context=True),
    }


if __name__ == "__main__":
    if sys.argv[1] == "plan":
        plan(Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "h100")
    else:
        run(Path(sys.argv[2]), Path(sys.argv[3]))
