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
        plan: the plan.
        graph: the model's graph.
        folder: the folder to write; an existing plan there is replaced.
        server: name of the server whose files are added (see `planner.serving.registry`), or None.

    Returns:
        The files.

    Raises:
        UnknownNameError: the plan's runtime or `server` is not known.
        InvalidInputError: `folder` holds something other than a plan, or the server cannot run this one.
        RuntimeFailure: the folder cannot be written.
    """
    runtime_models([plan.runtime])
    package = plan.runtime.replace("-", "_")
    module = importlib.import_module(f"planner.runtimes.{package}.emit")
    emitted: Emitted = across_hosts(module.emit(plan, graph), plan)
    if server is not None:
        emitted = serve(emitted, plan, graph, server)
    return write_folder(plan, emitted, folder)
