"""The servers by name. A new server needs a module in this package and an entry in `SERVERS`."""

from collections.abc import Callable
from typing import Final

from planner.cost.runtime_model import Emitted
from planner.errors import UnknownNameError
from planner.graph.schema import ModuleGraph
from planner.schema.plan import Plan
from planner.serving.djl import serve as djl
from planner.serving.mii import runtimes as mii_runtimes
from planner.serving.mii import serve as mii

SERVERS: Final[dict[str, Callable[[Emitted, Plan, ModuleGraph], Emitted]]] = {"djl": djl, "mii": mii}


def serve(emitted: Emitted, plan: Plan, graph: ModuleGraph, kind: str) -> Emitted:
    """A runtime's files together with those of a server.

    Args:
        emitted: the runtime's files.
        plan: the plan.
        graph: the model's graph.
        kind: name of the server, `djl` or `mii`.

    Raises:
        UnknownNameError: the server is not known.
        InvalidInputError: the server cannot run this plan.
    """
    if kind not in SERVERS:
        raise UnknownNameError(f"unknown server {kind!r}; known are {', '.join(SERVERS)}")
    return SERVERS[kind](emitted, plan, graph)


def runtimes(kind: str | None, graph: ModuleGraph) -> tuple[str, ...] | None:
    """The runtimes to plan for when the user names a server and no runtime; None for all of them."""
    return mii_runtimes(graph) if kind == "mii" else None
