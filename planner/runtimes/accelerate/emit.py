"""Emits a device map for transformers and Accelerate, and the script that pins host copies of weights."""

import json
from typing import Final

from planner.cost.runtime_model import Emitted
from planner.device_map.check import compress
from planner.graph.schema import ModuleGraph
from planner.runtimes.folder import SCRIPT, script
from planner.schema.plan import Plan, device_map_value

DEVICE_MAP_FILE: Final = "device_map.json"


def device_map_of(plan: Plan, graph: ModuleGraph) -> dict[str, str | int]:
    """The plan's map in its shortest form: a block that is stored in one place is one entry."""
    return compress({p.module: device_map_value(p.stored_on) for p in plan.placements}, graph)


def emit(plan: Plan, graph: ModuleGraph) -> Emitted:
    """The device map and the script."""
    device_map = json.dumps(device_map_of(plan, graph), indent=1) + "\n"
    return Emitted(
        files={DEVICE_MAP_FILE: device_map.encode(), SCRIPT: script("accelerate")},
        needs="torch, transformers, accelerate and safetensors",
        readme=f"""`{DEVICE_MAP_FILE}` alone works as well, with
`from_pretrained(CHECKPOINT, dtype="{plan.workload.dtype}", device_map=json.load(open("{DEVICE_MAP_FILE}")),
offload_folder="offload")`; then host copies are not pinned, and the allocator slows large batches down.""",
    )
