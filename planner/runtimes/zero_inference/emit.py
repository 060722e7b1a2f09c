"""Emits a DeepSpeed configuration and the script that loads the model with it."""

import json
from typing import Final

from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.runtimes.folder import SCRIPT, script
from planner.runtimes.zero_inference.config import ds_config, store_of
from planner.schema.plan import Plan

CONFIG_FILE: Final = "ds_config.json"

_NVME: Final = """
Weights are stored in files of a temporary folder: give `--offload-folder DIR` to have it on the fastest NVMe;
a script of your own sets `nvme_path` to a folder. Reading the files needs DeepSpeed's `async_io`, which is
compiled when it is first used: install `libaio-dev` (Debian, Ubuntu; `libaio-devel` on Fedora), `g++` and
`ninja`."""


def emit(plan: Plan, graph: ModuleGraph) -> Emitted:
    """The configuration and the script.

    Raises:
        InvalidInputError: weights are to be quantized and no Linear can be.
    """
    config = json.dumps(ds_config(plan, graph), indent=2) + "\n"
    several = (
        f"\nEach of the {plan.num_ranks} ranks generates sequences of its own, and copies its part of the "
        f"weights only. `deepspeed --num_gpus {plan.num_ranks} generate.py CHECKPOINT` or `torchrun` can "
        f"start them too.\n"
        if plan.num_ranks > 1
        else ""
    )
    return Emitted(
        files={CONFIG_FILE: config.encode(), SCRIPT: script("zero_inference")},
        needs="torch, transformers, accelerate and deepspeed",
        readme=f"""`{CONFIG_FILE}` is complete and works with `HfDeepSpeedConfig` and
`deepspeed.initialize` in any script; its thresholds approximate which weights the plan keeps on the GPU.
`{SCRIPT}` keeps exactly those weights there.
{several}{_NVME if store_of(plan) == "nvme" else ""}""",
    )
