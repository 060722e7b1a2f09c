"""Emits a DeepSpeed configuration and the script that loads by it."""

import json
from typing import Final

from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.runtimes.folder import SCRIPT, script
from planner.runtimes.zero_inference.config import ds_config, store_of
from planner.schema.plan import Plan

CONFIG_FILE: Final = "ds_config.json"

_NVME: Final = """
Parts of the weights lie in files in a temporary folder: give `--offload-folder DIR` to have it on the fastest
NVMe; a script of your own puts one in the place of `nvme_path`. Reading them needs DeepSpeed's `async_io`,
which is compiled when it is first used: install `libaio-dev` (Debian, Ubuntu; `libaio-devel` on Fedora),
`g++` and `ninja`."""


def emit(plan: Plan, graph: ModuleGraph) -> Emitted:
    """The configuration and the script.

    Raises:
        InvalidInputError: weights are to be quantized and no Linear can be.
    """
    config = json.dumps(ds_config(plan, graph), indent=2) + "\n"
    several = (
        f"\nEvery one of the {plan.num_ranks} ranks generates sequences of its own; weights cross the hosts' "
        f"links once for all. `deepspeed --num_gpus {plan.num_ranks} generate.py CHECKPOINT` and `torchrun` "
        f"start them as well.\n"
        if plan.num_ranks > 1
        else ""
    )
    return Emitted(
        files={CONFIG_FILE: config.encode(), SCRIPT: script("zero_inference")},
        needs="torch, transformers, accelerate and deepspeed",
        readme=f"""`{CONFIG_FILE}` is complete and works with `HfDeepSpeedConfig` and
`deepspeed.initialize` in any script; its thresholds come as near to the plan as thresholds can.
`{SCRIPT}` keeps exactly the modules that the plan keeps.
{several}{_NVME if store_of(plan) == "nvme" else ""}""",
    )
