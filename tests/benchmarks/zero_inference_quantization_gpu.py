"""ZeRO-Inference with emitted blocks on a GPU, whose kernel decodes groups along the input dimension.

In two steps, because the machine with the GPU may have neither this project's packages nor a network:

    python tests/benchmarks/zero_inference_quantization_gpu.py prepare WORK
    RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \\
        python tests/integration/quantize/zero_inference_rank.py WORK/jobs.json RESULTS
    python tests/benchmarks/zero_inference_quantization_gpu.py compare WORK RESULTS

Run the second step where WORK has the same path. The third prints the largest difference of logits between
DeepSpeed's model and the plain one whose weights were encoded and decoded here, and whether tokens are equal.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from quantize.scheme import ZeroInference
from tests.integration.quantize.test_zero_inference import (
    Case,
    auto_class,
    decoded,
    emit,
    prompt,
    save,
)

CASES = {
    "trained-8": Case(None, ZeroInference(bits=8, group_size=64, dim=1)),
    "trained-8-zero-init": Case(None, ZeroInference(bits=8, group_size=64, dim=1), "zero-init"),
    "trained-8-under-zero": Case(None, ZeroInference(bits=8, group_size=64, dim=1), "under-zero"),
    "trained-4": Case(None, ZeroInference(bits=4, group_size=64, dim=1)),
    "trained-by-output": Case(None, ZeroInference(bits=8, group_size=32, dim=0)),
    "opt-8": Case("opt", ZeroInference(bits=8, group_size=16, dim=1)),
    "llama-8": Case("llama", ZeroInference(bits=8, group_size=16, dim=1)),
    "bloom-4": Case("bloom", ZeroInference(bits=4, group_size=16, dim=1)),
}


def prepare(work: Path) -> None:
    """Checkpoints, configurations and jobs."""
    work.mkdir(parents=True)
    jobs = []
    for name, case in CASES.items():
        checkpoint = save(case, work / name)
        chosen = emit(case, checkpoint, work / f"{name}.json")
        job = {
            "name": name,
            "checkpoint": str(checkpoint),
            "decoded": str(decoded(case, checkpoint, chosen, work / f"{name}-decoded")),
            "config": str(work / f"{name}.json"),
            "order": case.order,
            "auto_class": auto_class(case),
            "prompt": prompt(case),
            "new_tokens": 24,
        }
        jobs.append(job)
    (work / "jobs.json").write_text(json.dumps(jobs))


def compare(work: Path, results: Path) -> None:
    """Print a line for every job."""
    for job in json.loads((work / "jobs.json").read_text()):
        answer: dict[str, Any] = json.loads((results / f"{job['name']}-0.json").read_text())
        if "error" in answer:
            print(f"{job['name']:22} {answer['error']}: {answer['message'].splitlines()[0]}")
            continue
        logits, plain = (torch.tensor(answer[kind]["logits"]) for kind in ("quantized", "plain"))
        same = answer["quantized"]["tokens"] == answer["plain"]["tokens"]
        print(
            f"{job['name']:22} {len(answer['kept'])} Linears, largest difference "
            f"{(logits - plain).abs().max().item():.2e} of {plain.abs().max().item():.3g}, "
            f"tokens {'equal' if same else 'differ'}"
        )


if __name__ == "__main__":
    step, *paths = sys.argv[1:]
    {"prepare": prepare, "compare": compare}[step](*map(Path, paths))
