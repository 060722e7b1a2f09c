"""A model's parameters as ZeRO treats them: each is flattened and partitioned evenly over the ranks. Pure."""

from collections.abc import Sequence

import msgspec

from planner.device_map.keys import join
from planner.graph.schema import ModuleGraph
from planner.schema.plan import Plan


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter; tied ones are one parameter.

    Attributes:
        fqn: its canonical name.
        module: the module that owns it.
        num_elements: elements of the whole tensor.
        is_vector: whether it has fewer than two dimensions, as a bias or a norm's weight.
        in_block: whether it belongs to a no-split block, so that other blocks have an equal one.
    """

    fqn: str
    module: str
    num_elements: int
    is_vector: bool
    in_block: bool

    def partition_elements(self, num_ranks: int) -> int:
        """Elements of one rank's partition, padding included."""
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
    """Parameters that every rank keeps whole: those of modules stored where they run, and all vectors.

    Fetching a vector would cost more than keeping it: all together are less than a thousandth of a model.
    """
    kept = [p.module for p in plan.placements if p.stored_on == p.runs_on]
    return frozenset(
        parameter.fqn
        for parameter in parameters(graph)
        if parameter.is_vector
        or any(parameter.module == name or parameter.module.startswith(f"{name}.") for name in kept)
    )


def marked(owned: Sequence[Parameter], *, each: int, together: int) -> frozenset[str]:
    """The parameters that DeepSpeed keeps resident by its two thresholds.

    A parameter of at most `each` elements is kept while all kept ones have at most `together`; one that would
    exceed it is skipped, and a later, smaller one may still be kept. DeepSpeed visits them in the order of
    definition, which differs from the order of execution in a few model types.

    Source: DeepSpeedZeRoOffload.mark_persistent_parameters (0.19.8).

    Args:
        owned: a model's parameters, in the order in which they are visited.
        each: `stage3_param_persistence_threshold`, elements.
        together: `stage3_model_persistence_threshold`, elements.

    Returns:
        Names of the parameters.
    """
    kept, total = set(), 0
    for parameter in owned:
        if parameter.num_elements <= each and total + parameter.num_elements <= together:
            kept.add(parameter.fqn)
            total += parameter.num_elements
    return frozenset(kept)
