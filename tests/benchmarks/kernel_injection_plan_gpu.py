"""Kernel-injection plans run from their emitted folders on two GPUs: the plain model's tokens, and the time.

`python kernel_injection_plan_gpu.py plan FOLDER` writes the plans; it needs the planner and no GPU.
`python kernel_injection_plan_gpu.py run FOLDER OUT.json` runs them; it needs two CUDA GPUs and packages of
the plans' requirements.txt. The planner is not imported then: plans run as users run them.

tokens   a small BLOOM, trained to continue this repository's licence, from three kinds of checkpoint:
         safetensors (every rank cuts the whole), PyTorch's archives (DeepSpeed reads them one by one), and
         what `reshard --format deepspeed` wrote. Each must give the tokens of transformers alone.
time     OPT-6.7B of random weights: predicted beside measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from emitted_folders import child, generate, total_s

_ROOT: Final = Path(__file__).resolve().parents[2]
_SMALL: Final = "bloom"
_LARGE: Final = "opt-6.7b"
_HARDWARE: Final = "2xh200"
_NUM_RANKS: Final = 2
_PROMPT_TOKENS: Final = 16
_NEW_TOKENS: Final = 24
_PROMPTS_AT: Final = (40, 301, 760, 1100)  # bytes into the text
_LARGE_WORKLOAD: Final = {"batch_size": 8, "prompt_tokens": 512, "new_tokens": 32, "dtype": "float16"}


def plan(folder: Path) -> None:
    """Write both plans' folders and the small model's configuration."""
    sys.path.insert(0, str(_ROOT))
    from kernel_injection_models import _config

    from fixtures.plans import plan_with
    from planner.hardware.load import load
    from planner.runtimes.folder import write_folder
    from planner.runtimes.kernel_injection.emit import emit
    from planner.runtimes.kernel_injection.model import RUNTIME_MODEL
    from planner.schema.workload import Workload

    profile = load(_HARDWARE)
    way = next(one for one in RUNTIME_MODEL.configurations(profile) if one.num_ranks == _NUM_RANKS)
    small = Workload(
        batch_size=len(_PROMPTS_AT), prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS, dtype="float16"
    )
    with tempfile.TemporaryDirectory() as scratch:
        _config(_SMALL).save_pretrained(scratch)
        for name, source, workload in (
            ("small", scratch, small),
            ("large", _LARGE, Workload(**_LARGE_WORKLOAD)),  # type: ignore[arg-type]
        ):
            made, graph = plan_with(source, profile, RUNTIME_MODEL, way, workload)
            write_folder(made, emit(made, graph), folder / name)


def tokens(plans: Path, work: Path) -> dict[str, Any]:
    """Which kinds of checkpoint give the plain model's tokens."""
    from kernel_injection_models import text, train

    train(_SMALL, work / "hf")
    known = text()
    prompts = [known[at : at + _PROMPT_TOKENS].tolist() for at in _PROMPTS_AT]
    (work / "prompts.json").write_text(json.dumps(prompts))
    child([__file__, "plain", str(work)])
    plain = json.loads((work / "plain.json").read_text())
    child([__file__, "cut", str(work)])
    verdicts = {}
    for kind in ("hf", "archives", "shards"):
        report = generate(plans / "small", work / kind, work, ["--input-ids", str(work / "prompts.json")])
        verdicts[kind] = {"load_s": report["load_s"], "tokens_equal": report["tokens"] == plain}
    wanted = [known[at + _PROMPT_TOKENS : at + _PROMPT_TOKENS + _NEW_TOKENS].tolist() for at in _PROMPTS_AT]
    return {"checkpoints": verdicts, "plain_continues_text": plain == wanted}


def plain(work: Path) -> None:
    """Transformers alone, on one GPU: its tokens; and the checkpoint as archives."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work / "hf", torch_dtype=torch.float16).eval().to("cuda")
    rows = torch.tensor(json.loads((work / "prompts.json").read_text()), device="cuda")
    out = model.generate(
        input_ids=rows, attention_mask=torch.ones_like(rows), do_sample=False, max_new_tokens=_NEW_TOKENS
    )
    (work / "plain.json").write_text(json.dumps(out[:, _PROMPT_TOKENS:].tolist()))
    model.save_pretrained(work / "archives", safe_serialization=False, max_shard_size="2MB")


def cut(work: Path) -> None:
    """Pre-shards for DeepSpeed's kernels."""
    sys.path.insert(0, str(_ROOT))
    from reshard.job import Request
    from reshard.run import reshard

    target: dict[str, Any] = {"degrees": (_NUM_RANKS,), "format": "deepspeed", "dtype": "float16"}
    reshard(Request(source=str(work / "hf"), output=work / "shards", **target))


def large(work: Path) -> None:
    """Random weights of OPT-6.7B's shape."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=4096,
        word_embed_proj_dim=4096,
        ffn_dim=16384,
        num_hidden_layers=32,
        num_attention_heads=32,
        torch_dtype="float16",
    )
    with torch.device("meta"):
        model = OPTForCausalLM(config)
    model = model.to(torch.float16).to_empty(device="cuda")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    model.tie_weights()
    model.save_pretrained(work / "large", max_shard_size="4GB")


def timing(plans: Path, work: Path) -> dict[str, Any]:
    """The large model's plan: predicted beside measured."""
    child([__file__, "large", str(work)])
    arguments = ["--prompt-tokens", str(_LARGE_WORKLOAD["prompt_tokens"]), "--ignore-eos", "--repeat", "2"]
    with _Watch() as watch:
        report = generate(plans / "large", work / "large", work, arguments)
    prediction = json.loads((plans / "large" / "plan.json").read_text())["prediction"]
    memory = prediction["memory"]["gpu:0"].values()
    parts = ("weights", "kv", "activations", "staging", "context", "slack")
    return {
        "predicted": {
            "prefill_s": total_s(prediction["time"]["prefill"]),
            "step_s": total_s(prediction["time"]["decode"]),
            "load_s": prediction["load_s"],
            "gpu_bytes": max(sum(phase[part] for part in parts) for phase in memory),
        },
        "measured": {
            "prefill_s": report["prefill_s"],
            "step_s": statistics.median(report["decode_s"]),
            "load_s": report["load_s"],
            # What the driver says, since the kernels' workspace is not torch's.
            "gpu_bytes": watch.most_bytes,
            "gpu_bytes_of_torch": max(report["gpu_peak_reserved_bytes"]),
        },
    }


class _Watch:
    """The most memory that any GPU has in use, as the driver counts it, sampled twice a second."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _sample(self) -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._ends.wait(0.5):
            said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            self.most_bytes = max(self.most_bytes, *(int(line) * 2**20 for line in said.split()))


def run(plans: Path, output: Path) -> int:
    """Run both plans, print, write; the exit status says whether all tokens are equal."""
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "device": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
            "tokens": tokens(plans, Path(scratch)),
            "large": {"model": _LARGE, **_LARGE_WORKLOAD, **timing(plans, Path(scratch))},
        }
    output.write_text(json.dumps(result, indent=1) + "\n")
    for kind, verdict in result["tokens"]["checkpoints"].items():
        print(
            f"{kind:10} tokens {'equal' if verdict['tokens_equal'] else 'DIFFER'}, {verdict['load_s']:.1f} s"
        )
    for key, predicted in result["large"]["predicted"].items():
        measured = result["large"]["measured"][key]
        print(
            f"{key:10} predicted {predicted:.4g}, measured {measured:.4g}, ratio {predicted / measured:.2f}"
        )
    return 0 if all(one["tokens_equal"] for one in result["tokens"]["checkpoints"].values()) else 1


def main() -> int:
    """The command line; the last three actions are what child processes do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=("plan", "run", "plain", "cut", "large"))
    parser.add_argument("folder", type=Path, help="of the plans, or a child's working folder")
    parser.add_argument("output", type=Path, nargs="?", help="JSON file to write, with `run`")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    if args.action == "run":
        if args.output is None:
            parser.error("run needs the name of the JSON file to write")
        return run(args.folder.resolve(), args.output)
    {"plan": plan, "plain": plain, "cut": cut, "large": large}[args.action](args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
