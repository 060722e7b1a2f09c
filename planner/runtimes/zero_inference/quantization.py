"""Weights that DeepSpeed quantizes as it loads them, and the size and cost of the model with them. Pure.

`quantize.deepspeed_selection` alone defines which weights those are and how they are packed. This module
applies it to the modules of a graph, and rewrites the graph as ZeRO then holds it.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from planner.device_map.keys import join
from planner.errors import InvalidInputError
from planner.graph.schema import ItemsizeCost, ModuleGraph, Node, PhaseCost, Poly, Tensor
from planner.tensor_parallel.patterns import pattern_of
from quantize.deepspeed_block import post_init_quant
from quantize.deepspeed_selection import EXPERTS, NO_LINEAR, Choice, Weight, choose, packed_elements
from quantize.scheme import ZeroInference


class PackedGraph(ModuleGraph, frozen=True, kw_only=True):
    """A model with some quantized weights, each of which is one row of packed elements.

    Attributes:
        num_unpacked: elements of all parameters before they were quantized, tied ones counted once.
        is_loaded_whole: whether every process holds the unpacked model in host memory before it is quantized.
    """

    num_unpacked: int
    is_loaded_whole: bool


def weights_of(graph: ModuleGraph) -> tuple[Weight, ...]:
    """Every parameter of a model, as `quantize.deepspeed_selection` describes weights."""
    return tuple(
        _weight(graph, node, t) for node in graph.nodes for t in node.tensors if t.kind == "parameter"
    )


def choice_for(graph: ModuleGraph, num_bits: int) -> Choice:
    """The weights that a plan quantizes: the Linears inside the model's blocks, as far as DeepSpeed can."""
    wanted = [
        _weight(graph, node, tensor)
        for node in graph.nodes
        for tensor in node.tensors
        if node.block is not None and tensor.kind == "parameter" and _is_wanted(node, tensor)
    ]
    return choose(wanted, num_bits)


def why_nothing(graph: ModuleGraph, num_bits: int) -> str | None:
    """Why DeepSpeed can quantize nothing of a model, as a clause; None when it can."""
    choice = choice_for(graph, num_bits)
    if choice.weights:
        return None
    return choice.refusals[0].sentence if choice.refusals else f"{graph.model_class}: {NO_LINEAR}"


def unquantized_note(graph: ModuleGraph, num_bits: int) -> str | None:
    """Which weights inside the blocks stay at 16 bits and why, as a sentence without its period.

    Equal layers are named once, with `*` in the place of a layer's number. None when DeepSpeed quantizes all
    weights that a plan asks for.
    """
    refusals = choice_for(graph, num_bits).refusals
    if not refusals:
        return None
    patterns_of: dict[str, dict[str, None]] = {}
    for refusal in refusals:
        patterns_of.setdefault(refusal.reason, {})[pattern_of(refusal.name)] = None
    clauses = [f"{' and '.join(patterns)} ({reason})" for reason, patterns in patterns_of.items()]
    names = {refusal.name for refusal in refusals}
    num_elements = sum(
        tensor.num_elements
        for node in graph.nodes
        for tensor in node.tensors
        if join(node.name, tensor.name) in names
    )
    return (
        f"{len(names)} weights inside the blocks, {100 * num_elements / graph.num_parameters:.0f} % of the "
        f"model's parameters, stay at 16 bits: {'; '.join(clauses)}"
    )


def weight_quantization(graph: ModuleGraph, num_bits: int) -> dict[str, Any]:
    """The `weight_quantization` block of a plan.

    Raises:
        InvalidInputError: there is nothing that DeepSpeed can quantize.
    """
    choice = _non_empty_choice(graph, num_bits)
    modules = [weight.module for weight in weights_of(graph) if weight.is_replaced]
    return {"post_init_quant": post_init_quant([w.module for w in choice.weights], modules, choice.scheme)}


def packed(graph: ModuleGraph, num_bits: int | None) -> ModuleGraph:
    """The model with its weights quantized to `num_bits`, as a plan holds it; unchanged for None.

    Raises:
        InvalidInputError: there is nothing that DeepSpeed can quantize.
    """
    if num_bits is None:
        return graph
    choice = _non_empty_choice(graph, num_bits)
    return with_schemes(graph, {weight.module: choice.scheme for weight in choice.weights})


def with_schemes(
    graph: ModuleGraph,
    schemes: Mapping[str, ZeroInference],
    *,
    itemsize_bytes: int = 2,
    is_loaded_whole: bool = True,
) -> PackedGraph:
    """The model with the weights of some modules quantized.

    Args:
        graph: the plain model.
        schemes: module → how its `weight` is quantized.
        itemsize_bytes: bytes of one element of the model's dtype.
        is_loaded_whole: whether every process holds the unpacked model in host memory before it is quantized.
    """
    nodes = tuple(
        _packed_node(node, schemes[node.name], itemsize_bytes) if node.name in schemes else node
        for node in graph.nodes
    )
    fields = {name: getattr(graph, name) for name in graph.__struct_fields__}
    # A quantized weight is a separate parameter, unless all weights that it is tied to are quantized too.
    ties = tuple(tie for tie in graph.ties if len({_module(fqn) in schemes for fqn in tie}) == 1)
    fields |= {"nodes": nodes, "ties": ties}
    return PackedGraph(**fields, num_unpacked=graph.num_parameters, is_loaded_whole=is_loaded_whole)


def _non_empty_choice(graph: ModuleGraph, num_bits: int) -> Choice:
    reason = why_nothing(graph, num_bits)
    if reason is not None:
        raise InvalidInputError(f"{reason}; plan without `weight_bits`")
    return choice_for(graph, num_bits)


def _weight(graph: ModuleGraph, node: Node, tensor: Tensor) -> Weight:
    return Weight(
        module=node.name,
        class_name=node.class_name,
        parameter=tensor.name,
        shape=tensor.shape,
        model_type=graph.model_type,
    )


def _is_wanted(node: Node, tensor: Tensor) -> bool:
    """Whether a plan would quantize a tensor if DeepSpeed could: a Linear's matrix, or stacked experts."""
    is_linear = node.class_name.endswith("Linear") and tensor.name == "weight" and len(tensor.shape) == 2
    return is_linear or (node.class_name.endswith(EXPERTS) and len(tensor.shape) > 1)


def _module(fqn: str) -> str:
    return fqn.rpartition(".")[0]


def _packed_node(node: Node, scheme: ZeroInference, itemsize_bytes: int) -> Node:
    (weight,) = (tensor for tensor in node.tensors if tensor.name == "weight")
    elements = packed_elements(weight.shape, scheme, itemsize_bytes=itemsize_bytes)
    tensors = tuple(
        msgspec.structs.replace(tensor, shape=(1, elements)) if tensor is weight else tensor
        for tensor in node.tensors
    )
    costs = {
        size: ItemsizeCost(
            prefill=_decoding(cost.prefill, weight, scheme, int(size)),
            decode=_decoding(cost.decode, weight, scheme, int(size)),
        )
        for size, cost in node.costs.items()
    }
    return msgspec.structs.replace(node, tensors=tensors, costs=costs)


def _decoding(cost: PhaseCost, weight: Tensor, scheme: ZeroInference, itemsize_bytes: int) -> PhaseCost:
    """A module's cost with the decoding of its weight, which does not depend on the number of tokens.

    A CUDA kernel reads codes and writes weights. Where there is none for the groups, torch unpacks 4-bit
    codes (a shift, a mask and two strided copies), makes zeros, copies the codes there, divides and adds. The
    matrix product then reads the decoded copy, which is in memory with the packed one until the module ends.
    These bytes are counted; on an H200 torch took three times as long as a plain copy of as many bytes
    (tests/benchmarks/results/2026-12-01-h200-zero-inference-decoding.md).

    Source: deepspeed.inference.quantization.utils.DeQuantizer (0.19.8).
    """
    numel = weight.num_elements
    if scheme.dim == 1 and scheme.group_size % 8 == 0 and itemsize_bytes == 2:
        num_ops, moved, copies = 1, 2 * itemsize_bytes, itemsize_bytes
    elif scheme.bits == 8:
        num_ops, moved, copies = 4, 7 * itemsize_bytes, itemsize_bytes
    else:
        num_ops, moved, copies = 8, 7 * itemsize_bytes + 5, itemsize_bytes + 1
    return PhaseCost(
        num_ops=cost.num_ops + num_ops,
        flops=cost.flops,
        moved_bytes=_plus(cost.moved_bytes, moved * numel),
        peak_bytes=tuple(_plus(poly, copies * numel) for poly in cost.peak_bytes),
    )


def _plus(poly: Poly, constant: float) -> Poly:
    return msgspec.structs.replace(poly, const=poly.const + constant)
