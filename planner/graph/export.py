"""Writes a module graph as JSON, GraphML or SVG; the file's suffix selects the format."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from planner.errors import InvalidInputError
from planner.files import write_atomically
from planner.graph.schema import ModuleGraph, Node, Poly


def export(graph: ModuleGraph, path: Path) -> None:
    """Write `graph` to `path` atomically.

    - `.json`: networkx's node-link form (`networkx.node_link_graph(data, edges="edges")` reads it back), each
      node with its tensors, its cost polynomials in both phases and its cache.
    - `.graphml`: the same nodes and edges with one-token costs, because GraphML has only scalar attributes.
    - `.svg`: a picture with equal blocks drawn once.

    Raises:
        InvalidInputError: another suffix, or the file cannot be written.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise InvalidInputError(
            f"cannot write a graph to {path}: the name must end in {', '.join(_WRITERS)}, not {path.suffix!r}"
        )
    if path.is_dir():
        raise InvalidInputError(f"cannot write a graph to {path}: it is a folder")
    payload = writer(graph)
    try:
        write_atomically(path, payload)
    except OSError as error:
        raise InvalidInputError(f"cannot write a graph to {path}: {error.strerror}") from error


def _json(graph: ModuleGraph) -> bytes:
    import networkx as nx

    from planner.graph.network import to_networkx

    network = to_networkx(graph)
    network.graph |= {
        "versions": graph.versions,
        "leaks": list(graph.leaks),
        "main_device": list(graph.main_device),
        # Names the coefficients of each polynomial, in order: b is batch, p prompt and c context length.
        "cost_terms": list(Poly.__struct_fields__),
    }
    for node in graph.nodes:
        network.nodes[node.name].update(_details(node))
    data = nx.node_link_data(network, edges="edges")
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()


def _details(node: Node) -> dict[str, Any]:
    full: dict[str, Any] = msgspec.to_builtins(node)
    return {key: full[key] for key in ("tensors", "costs", "kv") if key in full}


def _graphml(graph: ModuleGraph) -> bytes:
    import networkx as nx

    from planner.graph.network import to_networkx

    network = to_networkx(graph)
    for key, value in network.graph.items():
        if isinstance(value, list):
            network.graph[key] = json.dumps(value)
    # GraphML readers treat an empty id as a missing one.
    if "" in network:
        network = nx.relabel_nodes(network, {"": "(root)"})
    buffer = io.BytesIO()
    nx.write_graphml_xml(network, buffer)
    return buffer.getvalue()


def _svg(graph: ModuleGraph) -> bytes:
    from planner.graph.picture import draw

    return draw(graph).encode()


_WRITERS: Final[dict[str, Callable[[ModuleGraph], bytes]]] = {
    ".json": _json,
    ".graphml": _graphml,
    ".svg": _svg,
}
