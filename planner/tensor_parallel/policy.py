"""The injection policy that the roles imply: class of block → its row-parallel Linears. Pure.

DeepSpeed compares a Linear's own name and that of the module that holds it, `.fc2` where that is the block.
Source: deepspeed.module_inject.auto_tp (0.19.8).
"""

from planner.graph.schema import ModuleGraph


def injection_policy(graph: ModuleGraph) -> dict[str, tuple[str, ...]]:
    """For every class of no-split blocks the Linears whose ranks' results are summed.

    Blocks of one class may differ: an encoder's T5Block has no cross-attention. Their names are merged,
    because DeepSpeed looks a policy up by the class.
    """
    class_of = dict(zip(graph.blocks, graph.block_classes, strict=False))
    names_of_class: dict[str, dict[str, None]] = {}
    for node in graph.nodes:
        is_row = node.tensor_parallel is not None and node.tensor_parallel.role == "row"
        if is_row and node.block in class_of and node.class_name.endswith("Linear"):
            names = names_of_class.setdefault(class_of[node.block], {})
            names.setdefault(relative_name(node.name, node.block))
    return {class_name: tuple(names) for class_name, names in names_of_class.items()}


def relative_name(name: str, block: str) -> str:
    """A Linear of a block as DeepSpeed names it."""
    *_, holder, own = ["", *name[len(block) + 1 :].split(".")]
    return f"{holder}.{own}"
