"""Compact JSON of a module graph: equal modules are stored once, equal layers as arithmetic sequences.

The JSON has a table of *kinds* (what equal modules share) and a list of *runs*: a name with `*` for the layer
number, and the arithmetic sequences of its layer numbers and of its ranks in execution order. Nothing is
lost: `decode(encode(graph)) == canonical(graph)`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from planner.errors import BadFileError
from planner.graph.schema import (
    SCHEMA_VERSION,
    Edge,
    ItemsizeCost,
    KvCost,
    ModuleGraph,
    ModuleRole,
    Node,
    Tensor,
)


class _Kind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What equal modules share."""

    class_name: str
    tensors: tuple[Tensor, ...] = ()
    costs: dict[str, ItemsizeCost] = {}
    kv: KvCost | None = None
    num_calls: int = 1
    tensor_parallel: ModuleRole | None = None


class _Run(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`count` modules whose layer numbers and ranks grow in equal steps; `block` may contain a `*` too."""

    name: str
    block: str | None
    kind: int
    order: int
    count: int = 1
    number: int = 0
    number_step: int = 0
    order_step: int = 0


class _EdgeRun(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`count` edges whose layer numbers grow in equal steps."""

    source: str
    target: str
    bytes_per_token: float
    count: int = 1
    source_number: int = 0
    target_number: int = 0
    step: int = 0


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file; `head` has the fields of the graph besides its nodes and edges."""

    schema_version: int
    head: dict[str, Any]
    kinds: tuple[_Kind, ...]
    runs: tuple[_Run, ...]
    edges: tuple[_EdgeRun, ...]


class _Versioned(msgspec.Struct):
    """The version alone, read before the rest so that another version gets an error of its own."""

    schema_version: int


_HEAD = tuple(
    name for name in ModuleGraph.__struct_fields__ if name not in ("schema_version", "nodes", "edges")
)


def canonical(graph: ModuleGraph) -> ModuleGraph:
    """The same graph with its nodes in execution order and its edges sorted by source and target."""
    return msgspec.structs.replace(
        graph,
        nodes=tuple(sorted(graph.nodes, key=lambda n: (n.order, n.name))),
        edges=tuple(sorted(graph.edges, key=lambda e: (e.source, e.target))),
    )


def encode(graph: ModuleGraph) -> bytes:
    """The graph as compact JSON."""
    graph = canonical(graph)
    kinds: dict[bytes, int] = {}
    table: list[_Kind] = []
    rows: dict[tuple[str, str | None, int], list[tuple[int, int]]] = {}
    for node in graph.nodes:
        kind = _Kind(
            class_name=node.class_name,
            tensors=node.tensors,
            costs=node.costs,
            kv=node.kv,
            num_calls=node.num_calls,
            tensor_parallel=node.tensor_parallel,
        )
        index = kinds.setdefault(msgspec.json.encode(kind), len(kinds))
        if index == len(table):
            table.append(kind)
        name, number = _pattern(node.name)
        block, block_number = (None, None) if node.block is None else _pattern(node.block)
        if number is None or (block is not None and block_number not in (None, number)):
            name, number, block = node.name, None, node.block
        rows.setdefault((name, block, index), []).append((-1 if number is None else number, node.order))
    runs = tuple(
        run for (name, block, index), members in rows.items() for run in _runs(name, block, index, members)
    )
    head = {name: getattr(graph, name) for name in _HEAD}
    file = _File(
        schema_version=graph.schema_version,
        head=head,
        kinds=tuple(table),
        runs=runs,
        edges=tuple(_edge_runs(graph.edges)),
    )
    return msgspec.json.encode(file) + b"\n"


def decode(payload: bytes, *, origin: str = "graph") -> ModuleGraph:
    """A graph from compact JSON.

    Args:
        payload: bytes that `encode` wrote.
        origin: what an error message calls the file.

    Raises:
        BadFileError: the payload is no module graph, or has another schema version.
    """
    try:
        version = msgspec.json.decode(payload, type=_Versioned).schema_version
        if version != SCHEMA_VERSION:
            raise BadFileError(f"{origin} has schema version {version}; this planner reads {SCHEMA_VERSION}")
        file = msgspec.json.decode(payload, type=_File)
        nodes = [node for run in file.runs for node in _expand(run, file.kinds[run.kind])]
        edges = [edge for run in file.edges for edge in _expand_edge(run)]
        plain = {**file.head, "schema_version": version, "nodes": (), "edges": ()}
        graph = msgspec.convert(plain, ModuleGraph)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, IndexError) as error:
        raise BadFileError(f"{origin} is not a module graph: {error}") from error
    return canonical(msgspec.structs.replace(graph, nodes=tuple(nodes), edges=tuple(edges)))


def _pattern(name: str) -> tuple[str, int | None]:
    """`h.3.attn` → (`h.*.attn`, 3): the first number in a name is its layer number."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal() and str(int(part)) == part:
            return ".".join([*parts[:index], "*", *parts[index + 1 :]]), int(part)
    return name, None


def _runs(name: str, block: str | None, kind: int, members: list[tuple[int, int]]) -> Iterator[_Run]:
    members = sorted(members)
    if members[0][0] == -1:
        for _, order in members:
            yield _Run(name, block, kind, order)
        return
    start = 0
    while start < len(members):
        end = _arithmetic_end(members, start)
        number, order = members[start]
        steps = (
            [b - a for a, b in zip(members[start], members[start + 1], strict=True)]
            if end > start + 1
            else [0, 0]
        )
        yield _Run(name, block, kind, order, end - start, number, *steps)
        start = end


def _arithmetic_end(members: list[tuple[int, int]], start: int) -> int:
    """End (exclusive) of the longest arithmetic sequence of pairs that begins at `start`."""
    end = start + 1
    while end < len(members) and (
        end == start + 1
        or all(
            members[end][i] - members[end - 1][i] == members[start + 1][i] - members[start][i] for i in (0, 1)
        )
    ):
        end += 1
    return end


def _edge_runs(edges: Iterable[Edge]) -> Iterator[_EdgeRun]:
    groups: dict[tuple[str, str, float], list[tuple[int, int]]] = {}
    for edge in edges:
        source, source_number = _pattern(edge.source)
        target, target_number = _pattern(edge.target)
        if source_number is None or target_number is None:
            yield _EdgeRun(edge.source, edge.target, edge.bytes_per_token)
        else:
            groups.setdefault((source, target, edge.bytes_per_token), []).append(
                (source_number, target_number)
            )
    for (source, target, num_bytes), members in groups.items():
        members.sort()
        start = 0
        while start < len(members):
            end = _arithmetic_end(members, start)
            step = members[start + 1][0] - members[start][0] if end > start + 1 else 0
            if end > start + 1 and step != members[start + 1][1] - members[start][1]:
                end, step = start + 1, 0
            source_number, target_number = members[start]
            yield _EdgeRun(source, target, num_bytes, end - start, source_number, target_number, step)
            start = end


def _expand(run: _Run, kind: _Kind) -> Iterator[Node]:
    for i in range(run.count):
        number = str(run.number + i * run.number_step)
        yield Node(
            name=run.name.replace("*", number, 1),
            block=None if run.block is None else run.block.replace("*", number, 1),
            order=run.order + i * run.order_step,
            class_name=kind.class_name,
            tensors=kind.tensors,
            costs=kind.costs,
            kv=kind.kv,
            num_calls=kind.num_calls,
            tensor_parallel=kind.tensor_parallel,
        )


def _expand_edge(run: _EdgeRun) -> Iterator[Edge]:
    for i in range(run.count):
        yield Edge(
            source=run.source.replace("*", str(run.source_number + i * run.step), 1),
            target=run.target.replace("*", str(run.target_number + i * run.step), 1),
            bytes_per_token=run.bytes_per_token,
        )
