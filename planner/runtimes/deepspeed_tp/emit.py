"""Emits the arguments of `deepspeed.init_inference`, and the script that gives them to it."""

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
#: Of `reshard.loaders`, beside the script: what DeepSpeed leaves undone in the models that it cuts.
FORWARD: Final = "autotp_forward.py"


def inference_config(plan: Plan, graph: ModuleGraph) -> dict[str, Any]:
    """The arguments, as JSON has them: names stand for classes of blocks and for the dtype.

    A family whose row-parallel Linears DeepSpeed itself finds needs no policy.
    """
    settings: dict[str, Any] = {
        "dtype": plan.workload.dtype,
        # Grains of more than one row would cut unevenly what the plan, and a pre-shard, cut evenly.
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
        readme=f"""CHECKPOINT may be cut beforehand; then each of the {ranks} ranks reads its own part only:

    reshard CHECKPOINT --tp {ranks} --dtype {dtype} --output SHARDS
    python generate.py SHARDS --prompt "Once upon a time"

A checkpoint that is not cut should be stored in {dtype}: then a rank reads from mapped files what it keeps.
Of another dtype every rank converts the whole model in host memory first.""",
    )
