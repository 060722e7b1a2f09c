"""Writes the folder that runs a plan: the runtime's files, and a server's beside them."""

import importlib
from pathlib import Path

from planner.cost.runtime_model import Emitted
from planner.graph.schema import ModuleGraph
from planner.runtimes.folder import write_folder
from planner.runtimes.registry import runtime_models
from planner.schema.plan import Plan
from planner.serving.launch import across_hosts
from planner.serving.registry import serve


def emit(plan: Plan, graph: ModuleGraph, folder: Path, *, server: str | None = None) -> tuple[Path, ...]:
    """Write the folder that runs a plan; see the runtime's own `emit` module.

    Args:
        plan: what to run.
        graph: the model's.
        folder: where.
        server: a server to put in front (see `planner.serving.registry`), or None.

    Raises:
        UnknownNameError: the plan names a runtime that is not known, or `server` is none.
        InvalidInputError: `folder` holds something other than a plan, or the server cannot run this one.
    """
    runtime_models([plan.runtime])
    package = plan.runtime.replace("-", "_")
    module = importlib.import_module(f"planner.runtimes.{package}.emit")
    emitted: Emitted = across_hosts(module.emit(plan, graph), plan)
    if server is not None:
        emitted = serve(emitted, plan, graph, server)
    return write_folder(plan, emitted, folder)
