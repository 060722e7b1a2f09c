"""Emits the script alone: how the model is cut is said by its configuration's `base_model_tp_plan`."""

from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.runtimes.folder import SCRIPT, script
from planner.schema.plan import Plan


def emit(plan: Plan, graph: ModuleGraph) -> Emitted:
    """The script."""
    ranks, dtype = plan.num_ranks, plan.workload.dtype
    return Emitted(
        files={SCRIPT: script("transformers_tp")},
        needs="torch, transformers and safetensors",
        readme=f"""CHECKPOINT may be cut beforehand; then each of the {ranks} ranks reads its own part,
and what every rank holds:

    reshard CHECKPOINT --tp {ranks} --format transformers --dtype {dtype} --output SHARDS
    python generate.py SHARDS --prompt "Once upon a time"
""",
    )
