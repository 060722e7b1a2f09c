"""Emits the same files as for Accelerate: a device map whose only device is the CPU is plain transformers."""

from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.runtimes.accelerate.emit import emit as emit_device_map
from planner.schema.plan import Plan


def emit(plan: Plan, graph: ModuleGraph) -> Emitted:
    """The device map and the script."""
    return emit_device_map(plan, graph)
