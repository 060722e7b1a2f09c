"""The `weight_quantization` block of a plan: which Linears DeepSpeed quantizes as it loads them. Pure.

Its keys are parts of module names: DeepSpeed quantizes every Linear whose name contains one of them, and
stops when a name contains two. Source: deepspeed.inference.quantization.quantization (0.19.8).
"""

from typing import Any, Final

from planner.errors import InvalidInputError
from planner.graph.schema import ModuleGraph, Node

#: The largest group whose scale is kept; along the output dimension it is decoded without a CUDA kernel.
_GROUP: Final = 64
#: Bits of the float16 elements that codes are packed into.
_PACKED: Final = 16


def weight_quantization(graph: ModuleGraph, num_bits: int) -> dict[str, Any]:
    """The block for every plain Linear inside the model's blocks.

    Raises:
        InvalidInputError: there is none, or none whose shape DeepSpeed can pack.
    """
    fitting = [node for node in graph.nodes if _is_chosen(node, num_bits)]
    keys = {_tail(node.name) for node in fitting}
    others = {node.name for node in graph.nodes if node.class_name == "Linear" and node not in fitting}
    usable = [
        key
        for key in sorted(keys)
        if not any(key in name for name in others) and not any(key != one and one in key for one in keys)
    ]
    if not usable:
        raise InvalidInputError(
            f"{graph.model_class} has no Linear in its blocks that DeepSpeed can quantize to {num_bits} "
            f"bits; plan without --weight-bits"
        )
    return {"post_init_quant": {key: _setting(_named(fitting, key), num_bits) for key in usable}}


def _is_chosen(node: Node, num_bits: int) -> bool:
    weight = next((t for t in node.tensors if t.name == "weight"), None)
    if node.class_name != "Linear" or node.block is None or weight is None:
        return False
    rows, columns = weight.shape
    return columns % (_PACKED // num_bits) == 0 and rows % 2 == 0


def _named(nodes: list[Node], key: str) -> list[Node]:
    return [node for node in nodes if key in node.name]


def _setting(nodes: list[Node], num_bits: int) -> dict[str, Any]:
    size = _GROUP
    while any(_rows(node) % size for node in nodes):
        size //= 2
    return {"num_bits": num_bits, "group_size": size, "group_dim": 0, "symmetric": False}


def _rows(node: Node) -> int:
    return next(t.shape[0] for t in node.tensors if t.name == "weight")


def _tail(name: str) -> str:
    """`.attn.q_proj` of `transformer.h.0.attn.q_proj`."""
    segments = name.split(".")
    numbers = [index for index, segment in enumerate(segments) if segment.isdecimal()]
    return "." + ".".join(segments[numbers[-1] + 1 :]) if numbers else name
