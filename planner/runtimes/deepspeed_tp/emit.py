"""Emits the arguments of `deepspeed.init_inference`, and the script that calls it with them."""

import json
from importlib import resources
from typing import Any, Final

from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.runtimes.deepspeed_tp.families import AUTO_TP_MODEL_TYPES
from planner.runtimes.folder import SCRIPT, script
from planner.schema.plan import Plan
from planner.tensor_parallel.policy import injection_policy

CONFIG_FILE: Final = "inference_config.json"
#: A module of `reshard.loaders` that the script needs beside it: it completes the models that DeepSpeed cuts.
FORWARD: Final = "autotp_forward.py"


def inference_config(plan: Plan, graph: ModuleGraph) -> dict[str, Any]:
    """The arguments as JSON, in which names stand for classes of blocks and for the dtype.

    Model types whose row-parallel Linears DeepSpeed finds by itself need no injection policy.
    """
    settings: dict[str, Any] = {
        "dtype": plan.workload.dtype,
        # With a larger grain DeepSpeed cuts unevenly what the plan, and a pre-sharded checkpoint, cut evenly.
        "tensor_parallel": {"tp_size": plan.num_ranks, "tp_grain_size": 1},
        "replace_with_kernel_inject": False,
    }
    if graph.model_type not in AUTO_TP_MODEL_TYPES:
        settings["injection_policy"] = injection_policy(graph)
    return settings


def emit(plan: Plan, graph: ModuleGraph) -> Emitted:
    """The arguments and the script."""
    ranks, dtype = plan.num_ranks, plan.workload.dtype
    config = json.dumps(inference_config(plan, graph), indent=1) + "\n"
    forward = resources.files("reshard.loaders").joinpath(FORWARD).read_bytes()
    return Emitted(
        files={CONFIG_FILE: config.encode(), SCRIPT: script("deepspeed_tp"), FORWARD: forward},
        needs="torch, transformers, accelerate, deepspeed and safetensors",
        readme=f"""CHECKPOINT may be pre-sharded; then each of the {ranks} ranks reads its own part only:

    reshard CHECKPOINT --tp {ranks} --dtype {dtype} --output SHARDS
    python generate.py SHARDS --prompt "Once upon a time"

A checkpoint that is not pre-sharded should be stored in {dtype}: then each rank maps the files and reads only
what it keeps. From another dtype every rank first converts the whole model in host memory.""",
    )
