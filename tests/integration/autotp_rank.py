"""One rank of a tensor-parallel run: loads folder after folder, says what each model computes or why not.

Usage: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment; `autotp_rank.py JOBS RESULTS`.
"""

import json
import os
import sys
from pathlib import Path

import torch

from reshard.errors import CheckpointError
from reshard.loaders.autotp import load_autotp


def bytes_read() -> int:
    """By this process so far, through system calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def compute(folder: Path, prompt: dict[str, list[list[int]]], new_tokens: int) -> dict[str, object]:
    """Logits of the prompt, of its first row without a mask, and greedy tokens."""
    load_autotp(folder, dtype=torch.float32)  # imports what the model needs, which is read as well
    before = bytes_read()
    engine = load_autotp(folder, dtype=torch.float32)
    read = bytes_read() - before
    inputs = {name: torch.tensor(rows) for name, rows in prompt.items()}
    bare = {name: rows[:1] for name, rows in inputs.items() if name != "attention_mask"}
    with torch.no_grad():
        result: dict[str, object] = {
            "logits": engine.module(**inputs).logits.tolist(),
            "logits_without_mask": engine.module(**bare).logits.tolist(),
        }
        if engine.module.can_generate():
            prompt_only = {n: rows for n, rows in inputs.items() if n != "decoder_input_ids"}
            tokens = engine.generate(**prompt_only, max_new_tokens=new_tokens, do_sample=False)
            result["tokens"] = tokens.tolist()
    return result | {"bytes_read": read}


def main() -> None:
    jobs, results = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    for job in jobs:
        try:
            found = compute(Path(job["folders"][rank]), job["prompt"], job["new_tokens"])
        except CheckpointError as error:
            found = {"error": type(error).__name__, "message": str(error)}
        (results / f"{job['name']}-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
