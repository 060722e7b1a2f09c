"""A module graph as a short chain of stages: embeddings, a stack of blocks, a norm, a head."""

from itertools import groupby

import msgspec

from planner.graph.schema import ModuleGraph, Node, Tensor
from reshard.dtypes import dtype

# Context at which the picture states operations: one new token after a prompt of 1,024 tokens.
CONTEXT = 1025
_MODEL_ITEMSIZE_BYTES = 2


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One module outside the blocks, or a run of consecutive blocks of one class in one list.

    Attributes:
        title: the class, with the number of blocks before it when there are several.
        fqns: the module, or the blocks in execution order.
        weight_bytes: of each of `fqns`, tensors that are tied to an earlier one not counted.
        kv_bytes_per_token: of each of `fqns`, per token of context.
        decode_flops: of each of `fqns`, for one new token at batch 1 and `CONTEXT` tokens.
        tied_to: fqn of the tensor that this stage uses and another stage owns, or "".

    Bytes are at 2 bytes an element, except tensors that keep a dtype of their own.
    """

    title: str
    fqns: tuple[str, ...]
    weight_bytes: tuple[int, ...]
    kv_bytes_per_token: tuple[float, ...]
    decode_flops: tuple[float, ...]
    tied_to: str = ""


def stages(graph: ModuleGraph) -> tuple[Stage, ...]:
    """The stages in execution order; modules outside the blocks appear when they own or use tensors."""
    canonical = {fqn: group[0] for group in graph.ties for fqn in group[1:]}
    single = [_single(name, nodes, canonical) for name, nodes in _units(graph)]
    visible = [stage for stage in single if stage.title]
    runs = groupby(visible, key=lambda s: (s.title, _list_of(s.fqns[0]), s.fqns[0] in graph.blocks))
    return tuple(
        stage for (_, _, is_block), run in runs for stage in ([_merged(list(run))] if is_block else run)
    )


def _units(graph: ModuleGraph) -> list[tuple[str, list[Node]]]:
    """Blocks with all their nodes, and the other nodes one by one, by first execution."""
    units: dict[str, list[Node]] = {}
    for node in sorted(graph.nodes, key=lambda n: n.order):
        units.setdefault(node.block if node.block is not None else node.name, []).append(node)
    return list(units.items())


def _single(name: str, nodes: list[Node], canonical: dict[str, str]) -> Stage:
    named = [(f"{n.name}.{t.name}" if n.name else t.name, t) for n in nodes for t in n.tensors]
    tied = [canonical[fqn] for fqn, _ in named if fqn in canonical]
    # A block is a container: where it runs no code of its own, its class is known only by its name.
    class_name = next((n.class_name for n in nodes if n.name == name), name.rpartition(".")[0] or name)
    return Stage(
        title=class_name if named else "",
        fqns=(name,),
        weight_bytes=(sum(_num_bytes(t) for fqn, t in named if fqn not in canonical),),
        kv_bytes_per_token=(sum(n.kv.per_token for n in nodes if n.kv is not None),),
        decode_flops=(sum(_decode_flops(n) for n in nodes),),
        tied_to=tied[0] if tied else "",
    )


def _merged(run: list[Stage]) -> Stage:
    title = run[0].title
    return Stage(
        title=f"{len(run)} × {title}" if len(run) > 1 else title,
        fqns=tuple(stage.fqns[0] for stage in run),
        weight_bytes=tuple(stage.weight_bytes[0] for stage in run),
        kv_bytes_per_token=tuple(stage.kv_bytes_per_token[0] for stage in run),
        decode_flops=tuple(stage.decode_flops[0] for stage in run),
        tied_to=run[0].tied_to,
    )


def _list_of(fqn: str) -> str:
    return fqn.rpartition(".")[0]


def _num_bytes(tensor: Tensor) -> int:
    itemsize = _MODEL_ITEMSIZE_BYTES if tensor.dtype is None else dtype(tensor.dtype).itemsize_bytes
    return tensor.num_elements * itemsize


def _decode_flops(node: Node) -> float:
    cost = node.costs.get(str(_MODEL_ITEMSIZE_BYTES))
    return cost.decode.flops(batch=1, prompt=CONTEXT - 1, context=CONTEXT) if cost is not None else 0.0
