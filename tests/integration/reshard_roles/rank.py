"""One of the processes that hold a model by halves: runs model after model, and says what it computes.

Usage: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment; `rank.py JOBS RESULTS`.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch
from torch import distributed

from tests.integration.reshard_roles.halves import load


def compute(job: dict[str, object], folder: Path) -> dict[str, object]:
    """Logits of the prompt and greedy tokens."""
    model = load(folder, str(job["auto_class"]), job["rows"])  # type: ignore[arg-type]
    inputs = {name: torch.tensor(rows) for name, rows in job["prompt"].items()}  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = model(**inputs).logits
        prompt = {name: rows for name, rows in inputs.items() if name != "decoder_input_ids"}
        tokens = model.generate(**prompt, max_new_tokens=job["new_tokens"], do_sample=False)
    parameters = {name: list(p.shape) for name, p in model.named_parameters()}
    return {"logits": logits.tolist(), "tokens": tokens.tolist(), "shapes": parameters}


def main() -> None:
    """Answer every job in a file of its own; the ranks stay together whatever happens to one of them."""
    jobs, results = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for job in jobs:
        try:
            found = compute(job, Path(job["folder"]))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        (results / f"{job['name']}-{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
