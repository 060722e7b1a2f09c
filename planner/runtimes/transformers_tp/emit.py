"""Emits the script alone: the `base_model_tp_plan` of the model's configuration defines how it is sharded."""

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
        readme=f"""CHECKPOINT may be pre-sharded; then each of the {ranks} ranks reads its own part and the
replicated weights only:

    reshard CHECKPOINT --tp {ranks} --format transformers --dtype {dtype} --output SHARDS
    python generate.py SHARDS --prompt "Once upon a time"
""",
    )
