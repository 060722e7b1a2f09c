"""Emits the folder: the same files as every runtime that transformers loads."""

from pathlib import Path

from planner.graph.schema import ModuleGraph
from planner.plan import Plan
from planner.runtimes.folder import write_folder


def emit(plan: Plan, graph: ModuleGraph, folder: Path) -> tuple[Path, ...]:
    """Write the folder; see `planner.runtimes.folder.write_folder`."""
    return write_folder(plan, graph, folder)
