"""The runtimes by name. A new one is a package beside these and one line here."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from planner.errors import UnknownNameError
from planner.graph.schema import ModuleGraph
from planner.plan import Plan
from planner.runtimes.accelerate.law import LAW as ACCELERATE
from planner.runtimes.base import Emitted, Law
from planner.runtimes.cpu.law import LAW as CPU
from planner.runtimes.deepspeed_tp.law import LAW as DEEPSPEED_TP
from planner.runtimes.folder import write_folder
from planner.runtimes.kernel_injection.law import LAW as KERNEL_INJECTION
from planner.runtimes.transformers_tp.law import LAW as TRANSFORMERS_TP
from planner.runtimes.zero_inference.law import LAW as ZERO_INFERENCE
from planner.serving.launch import across_hosts
from planner.serving.registry import serve

#: The simplest first: of two that are as fast it is chosen.
LAWS: Final[dict[str, Law]] = {
    law.name: law
    for law in (CPU, ACCELERATE, ZERO_INFERENCE, DEEPSPEED_TP, KERNEL_INJECTION, TRANSFORMERS_TP)
}


def laws(names: Iterable[str] | None = None) -> tuple[Law, ...]:
    """The named runtimes' laws; all of them for None.

    Raises:
        UnknownNameError: a name that is none of them.
    """
    if names is None:
        return tuple(LAWS.values())
    unknown = [name for name in names if name not in LAWS]
    if unknown:
        raise UnknownNameError(f"unknown runtime {unknown[0]!r}; known are {', '.join(LAWS)}")
    return tuple(LAWS[name] for name in names)


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
    laws([plan.runtime])
    package = plan.runtime.replace("-", "_")
    module = importlib.import_module(f"planner.runtimes.{package}.emit")
    emitted: Emitted = across_hosts(module.emit(plan, graph), plan)
    if server is not None:
        emitted = serve(emitted, plan, graph, server)
    return write_folder(plan, emitted, folder)
