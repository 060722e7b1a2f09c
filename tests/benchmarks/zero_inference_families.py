"""ZeRO-Inference on the CPU for every family, store and number of ranks, each through its emitted folder.

`python -m tests.benchmarks.zero_inference_families OUT.md` plans with one leaf in three resident, runs each
plan a tier down in child processes beside the plain model, and writes a row for it: what was compared, the
largest difference of logits, and the files that weights came from. It takes a quarter of an hour.
"""

import platform
import sys
import tempfile
from pathlib import Path

import deepspeed
import torch
import transformers

from planner.emission import emit
from planner.errors import PlannerError
from planner.models.resolve import resolve
from planner.tracing.store import graph_for
from planner.verification.run import verify
from tests.integration.zero_inference_cases import EIGHT, plan_for, save_wide

WAYS = [(store, num_ranks) for store in ("cpu", "disk") for num_ranks in (1, 2)]
HEAD = """| family | store | ranks | tokens equal | tokens | logit difference | files | MiB |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(family: str, checkpoint: Path, store: str, num_ranks: int, work: Path) -> str:
    """One plan through its folder."""
    plan = plan_for(checkpoint, store=store, num_ranks=num_ranks, kept=3, batch_size=2)
    folder = work / f"{family}-{store}-{num_ranks}"
    emit(plan, graph_for(resolve(str(checkpoint))), folder)
    start = f"| {family} | {'NVMe' if store == 'disk' else 'host memory'} | {num_ranks} |"
    try:
        found = verify(folder, checkpoint, on="cpu", new_tokens=8, batch_size=None, timeout_s=600)
    except PlannerError as error:
        return f"{start} {error} | | | | |\n"
    script, plan_run = found.script, found.plan
    equal = "yes" if script.tokens_equal and not script.near_ties else f"{script.near_ties} near ties"
    equal = equal if found.passed else f"NO: {script.first_difference}"
    mebibytes = plan_run.offload_bytes / 2**20
    return (
        f"{start} {equal} | {script.num_tokens} | {script.logit_error:.2g} | {plan_run.offload_files} | "
        f"{mebibytes:.1f} |\n"
    )


def main(out: Path) -> None:
    """Write the table; a row is in the file as soon as it is known."""
    versions = (
        f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {platform.machine()}"
    )
    text = f"""# ZeRO-Inference from emitted folders, on the CPU with gloo

Written by `python -m tests.benchmarks.zero_inference_families` with {versions}.

Models of two layers and a width of 512, float32, two sequences, 8 new tokens; one leaf in three resident. The
difference is the largest of any logit, as a share of the plain model's largest. Two ranks multiply one
sequence each where the plain model multiplies two, so their sums are taken in another order.

{HEAD}"""
    with tempfile.TemporaryDirectory() as scratch:
        for family in EIGHT:
            checkpoint = save_wide(family, Path(scratch) / family)
            for store, num_ranks in WAYS:
                text += row(family, checkpoint, store, num_ranks, Path(scratch))
                out.write_text(text)
                print(text.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
