"""A model's parameters as ZeRO sees them: each one flattened and cut evenly over the ranks. Pure."""

from collections.abc import Sequence

import msgspec

from planner.device_map.keys import join
from planner.graph.schema import ModuleGraph
from planner.schema.plan import Plan


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter; a tied one counts once.

    Attributes:
        fqn: its canonical name.
        module: the module that owns it.
        num_elements: of the whole tensor.
        is_vector: fewer than two dimensions: a bias or a norm's weight.
        in_block: it belongs to a no-split block, so that the model repeats its like.
    """

    fqn: str
    module: str
    num_elements: int
    is_vector: bool
    in_block: bool

    def partition_elements(self, num_ranks: int) -> int:
        """Elements of one rank's part, padding included."""
        return -(-self.num_elements // num_ranks)


def parameters(graph: ModuleGraph) -> tuple[Parameter, ...]:
    """Every parameter, in execution order."""
    duplicates = {fqn for group in graph.ties for fqn in group[1:]}
    return tuple(
        Parameter(
            fqn=fqn,
            module=node.name,
            num_elements=tensor.num_elements,
            is_vector=len(tensor.shape) < 2,
            in_block=node.block is not None,
        )
        for node in graph.nodes
        for tensor in node.tensors
        if tensor.kind == "parameter" and (fqn := join(node.name, tensor.name)) not in duplicates
    )


def resident(plan: Plan, graph: ModuleGraph) -> frozenset[str]:
    """Parameters that every rank keeps whole: those of modules that live where they run, and all vectors.

    A vector is cheaper kept than fetched: together they are less than a thousandth of a model.
    """
    kept = [p.module for p in plan.placements if p.stored_on == p.runs_on]
    return frozenset(
        one.fqn
        for one in parameters(graph)
        if one.is_vector or any(one.module == name or one.module.startswith(f"{name}.") for name in kept)
    )


def marked(found: Sequence[Parameter], *, each: int, together: int) -> frozenset[str]:
    """What DeepSpeed keeps by its two thresholds.

    A parameter of at most `each` elements is kept while all kept ones have at most `together`; one that would
    exceed it is passed over, and a later, smaller one may still be kept. DeepSpeed walks in the order of
    definition, which differs from the order of execution in a few families.

    Source: DeepSpeedZeRoOffload.mark_persistent_parameters (0.19.8).

    Args:
        found: a model's parameters, in the order in which they are walked.
        each: `stage3_param_persistence_threshold`, elements.
        together: `stage3_model_persistence_threshold`, elements.
    """
    kept, total = set(), 0
    for one in found:
        if one.num_elements <= each and total + one.num_elements <= together:
            kept.add(one.fqn)
            total += one.num_elements
    return frozenset(kept)
