"""The injection policy: of each class of block, which Linears are cut along their inputs. Pure.

`deepspeed.init_inference(injection_policy={class: names})` cuts every other Linear of such a block along its
outputs. A name is that of the Linear and of the module that holds it (`.fc2` when that is the block itself),
because so much of the path is what DeepSpeed compares. Source: deepspeed.module_inject.auto_tp (0.19.8).
"""

from collections.abc import Iterator

from planner.graph.schema import ModuleGraph, Node


def injection_policy(graph: ModuleGraph) -> dict[str, tuple[str, ...]]:
    """Class of block → its row-parallel Linears, by the roles that the traced operations gave them.

    Blocks of one class may differ (an encoder's T5Block has no cross-attention); the names of all are put
    together. Empty where the graph knows no row-parallel module in any block.
    """
    found: dict[str, dict[str, None]] = {}
    for kind, (block, nodes) in zip(graph.block_classes, nodes_by_block(graph), strict=True):
        for node in nodes:
            if is_row_parallel(node):
                found.setdefault(kind, {})[name_in_policy(block, node)] = None
    return {kind: tuple(rows) for kind, rows in found.items()}


def mistaken(graph: ModuleGraph) -> str | None:
    """A Linear that DeepSpeed would take for a row-parallel one of the same name; None when there is none."""
    policy = injection_policy(graph)
    for kind, (block, nodes) in zip(graph.block_classes, nodes_by_block(graph), strict=True):
        for node in nodes:
            if not is_row_parallel(node) and name_in_policy(block, node) in policy.get(kind, ()):
                return node.name
    return None


def is_row_parallel(node: Node) -> bool:
    """Whether its weight is cut along its inputs, and the ranks' results are summed."""
    return node.tensor_parallel is not None and node.tensor_parallel.role == "row"


def name_in_policy(block: str, node: Node) -> str:
    """A Linear's name as DeepSpeed writes it."""
    *_, holder, name = ["", *node.name.removeprefix(f"{block}.").split(".")]
    return f"{holder}.{name}"


def nodes_by_block(graph: ModuleGraph) -> Iterator[tuple[str, tuple[Node, ...]]]:
    """Every block that cannot be split, with the modules in it."""
    inside: dict[str, list[Node]] = {block: [] for block in graph.blocks}
    for node in graph.nodes:
        if node.block in inside:
            inside[node.block].append(node)
    for block, nodes in inside.items():
        yield block, tuple(nodes)
