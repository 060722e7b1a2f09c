"""Summary of a module graph: kinds of blocks, modules outside them, and constraints on placement."""

from collections.abc import Iterable

import msgspec

from planner.graph.schema import ModuleGraph, Node


class BlockKind(msgspec.Struct, frozen=True, kw_only=True):
    """No-split blocks with equal class, size and costs.

    Attributes:
        class_name: Python class of the block.
        fqns: the blocks, in execution order.
        num_parameters: elements of one of them, tied duplicates not counted.
        kv_bytes_per_token: what one of them adds to the cache per token of context, at 2 bytes an element.
        kv_window: tokens after which its cache stops growing, or None.
        decode_flops: floating-point operations of one of them for one new token after 1,024.
    """

    class_name: str
    fqns: tuple[str, ...]
    num_parameters: int
    kv_bytes_per_token: float
    kv_window: int | None
    decode_flops: float


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """A module that owns tensors and belongs to no block."""

    fqn: str
    class_name: str
    num_parameters: int


class GraphSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The output of `planner graph`.

    Attributes:
        model_class: the transformers class.
        num_parameters: of the whole model, ties counted once.
        num_modules: nodes of the graph.
        kv_bytes_per_token: of the whole model, at 2 bytes an element.
        block_kinds: the blocks, equal ones together.
        outside: modules with tensors that belong to no block.
        co_located: groups that must share a device.
        ties: groups of tensors that are one tensor.
        leaks: operations that combine devices whatever the placement.
        versions: of the libraries that traced it.
    """

    model_class: str
    num_parameters: int
    num_modules: int
    kv_bytes_per_token: float
    block_kinds: tuple[BlockKind, ...]
    outside: tuple[Outside, ...]
    co_located: tuple[tuple[str, ...], ...]
    ties: tuple[tuple[str, ...], ...]
    leaks: tuple[str, ...]
    versions: dict[str, str]


def summarise(graph: ModuleGraph) -> GraphSummary:
    """The summary of `graph`."""
    duplicates = {fqn for group in graph.ties for fqn in group[1:]}
    members: dict[str, list[Node]] = {block: [] for block in graph.blocks}
    for node in graph.nodes:
        if node.block is not None:
            members[node.block].append(node)
    outside = tuple(
        Outside(
            fqn=node.name,
            class_name=node.class_name,
            num_parameters=_num_parameters((node,), duplicates),
        )
        for node in graph.nodes
        if node.tensors and node.block is None
    )
    return GraphSummary(
        model_class=graph.model_class,
        num_parameters=graph.num_parameters,
        num_modules=len(graph.nodes),
        kv_bytes_per_token=_kv_bytes_per_token(graph.nodes),
        block_kinds=_kinds(members, duplicates),
        outside=outside,
        co_located=graph.co_located,
        ties=graph.ties,
        leaks=graph.leaks,
        versions=graph.versions,
    )


def _kinds(members: dict[str, list[Node]], duplicates: set[str]) -> tuple[BlockKind, ...]:
    alike: dict[BlockKind, list[str]] = {}
    for fqn, nodes in members.items():
        windows = {node.kv.window for node in nodes if node.kv is not None}
        kind = BlockKind(
            class_name=next((node.class_name for node in nodes if node.name == fqn), ""),
            fqns=(),
            num_parameters=_num_parameters(nodes, duplicates),
            kv_bytes_per_token=_kv_bytes_per_token(nodes),
            kv_window=windows.pop() if len(windows) == 1 else None,
            decode_flops=_decode_flops(nodes),
        )
        alike.setdefault(kind, []).append(fqn)
    return tuple(msgspec.structs.replace(kind, fqns=tuple(fqns)) for kind, fqns in alike.items())


def _num_parameters(nodes: Iterable[Node], duplicates: set[str]) -> int:
    return sum(
        tensor.num_elements
        for node in nodes
        for tensor in node.tensors
        if tensor.kind == "parameter" and f"{node.name}.{tensor.name}" not in duplicates
    )


def _kv_bytes_per_token(nodes: Iterable[Node]) -> float:
    return sum(node.kv.per_token for node in nodes if node.kv is not None)


def _decode_flops(nodes: Iterable[Node]) -> float:
    costs = [node.costs["2"] for node in nodes if "2" in node.costs]
    return sum(cost.decode.flops(batch=1, prompt=1024, context=1025) for cost in costs)
