"""Which models DeepSpeed's blocks compute like the model's own blocks. Pure.

A replaced block ignores some settings of the model's configuration without a message, and computes one fixed
value of each (`reshard.formats.injected` lists them, as found on GPUs). A graph has no configuration, but its
modules and their connections show most of those settings. The emitted script checks the others (the base of
rotary angles, the width of a window) in the checkpoint's configuration.
Source: deepspeed.module_inject.containers and deepspeed.model_implementations.transformers, 0.19.8.
"""

from typing import Final

import msgspec

from planner.graph.schema import ModuleGraph, Node
from reshard.formats.injected import BLOCKS, Block


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """The block of one model type, and the settings of a model that DeepSpeed's block does not compute.

    Attributes:
        block: names of the block's modules.
        sequential_norm: a norm that reads the sum after attention in some configurations, where DeepSpeed's
            block gives it the block's input; or None.
        residual_norm: a norm whose output is added to the residual in some configurations, where DeepSpeed's
            block adds the norm's input; or None.
        has_relu: whether DeepSpeed's block computes ReLU.
        qkv_bias: whether DeepSpeed's block needs biases in attention's projections.
    """

    block: Block
    sequential_norm: str | None = None
    residual_norm: str | None = None
    has_relu: bool = False
    qkv_bias: bool = False


FAMILIES: Final[dict[str, Family]] = {
    "bloom": Family(block=BLOCKS["bloom"], residual_norm="input_layernorm"),
    "gpt_neo": Family(block=BLOCKS["gpt_neo"]),
    "gpt_neox": Family(block=BLOCKS["gpt_neox"], sequential_norm="post_attention_layernorm", qkv_bias=True),
    "gptj": Family(block=BLOCKS["gptj"]),
    "opt": Family(block=BLOCKS["opt"], has_relu=True),
}

#: Model type → why DeepSpeed fails to run it, or gives other tokens than the plain model.
KNOWN_FAILURES: Final = {
    "llama": "DeepSpeed's Llama block and transformers 4.43's cache are not compatible",
    "gpt2": "DeepSpeed cannot load GPT-2's blocks from pre-shards",
}

#: Tokens in the window of local attention of every released GPT-Neo; the emitted script reads that of the
#: checkpoint. DeepSpeed's kernel misplaces the window once a sequence fills it.
GPT_NEO_WINDOW: Final = 256


def unlike(graph: ModuleGraph) -> str | None:
    """Why DeepSpeed's blocks would not compute this model, as a clause; None where they do."""
    family = FAMILIES.get(graph.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        return KNOWN_FAILURES.get(
            graph.model_type,
            f"DeepSpeed has no block for {graph.model_type} that was found to compute it, only for {known}",
        )
    by_name = {node.name: node for node in graph.nodes}
    edges = {(edge.source, edge.target) for edge in graph.edges}
    for block in graph.blocks:
        reason = _unlike_block(block, family, by_name, edges)
        if reason is not None:
            return f"{reason} (module {block})"
    return None


def _unlike_block(
    block: str, family: Family, by_name: dict[str, Node], edges: set[tuple[str, str]]
) -> str | None:
    """Why DeepSpeed's block would not compute one block, as a clause; None where it does."""

    def own(name: str) -> str:
        return f"{block}.{name}"

    modules = family.block
    parts = (modules.norm, modules.qkv, modules.out, modules.inter, modules.mlp_norm or modules.norm)
    absent = [part for part in parts if own(part) not in by_name]
    if absent:
        return f"DeepSpeed's block needs {absent[0]}, which this one lacks"
    if (own(modules.norm), own(modules.qkv)) not in edges:
        return "DeepSpeed's block normalizes before attention and the MLP, this model after them"
    if family.sequential_norm and (block, own(family.sequential_norm)) in edges:
        return "DeepSpeed's block feeds attention and the MLP the same input, this model one after the other"
    if family.residual_norm and (own(family.residual_norm), block) in edges:
        return "DeepSpeed's block adds its norm's input to the residual, this model the norm's output"
    if not family.has_relu and any(n.class_name == "ReLU" for n in by_name.values() if n.block == block):
        return "DeepSpeed's block computes GELU, this model ReLU"
    if family.qkv_bias and all(t.name != "bias" for t in by_name[own(modules.qkv)].tensors):
        return "DeepSpeed's block needs biases in attention's projections"
    inner, hidden = _weight(by_name[own(modules.inter)])
    if inner != 4 * hidden:
        return f"DeepSpeed's block needs an MLP of 4 x hidden, and has {inner} for {hidden}"
    return None


def _weight(node: Node) -> tuple[int, int]:
    """Numbers of outputs and inputs of a Linear."""
    outputs, inputs = next(t.shape for t in node.tensors if len(t.shape) == 2)
    return outputs, inputs


def num_heads(graph: ModuleGraph) -> int:
    """Attention heads of the whole model, whether `graph` is the whole model or one rank's part.

    Where the graph does not show the heads, 64 features per head are assumed, the fewest in these models.
    """
    block = FAMILIES[graph.model_type].block
    out = next(n for n in graph.nodes if n.name == f"{graph.blocks[0]}.{block.out}")
    if out.tensor_parallel is not None:
        return out.tensor_parallel.num_groups
    return max(1, _weight(out)[0] // 64)


def hidden_size(graph: ModuleGraph) -> int:
    """Features of the residual stream."""
    block = FAMILIES[graph.model_type].block
    norm = next(n for n in graph.nodes if n.name == f"{graph.blocks[0]}.{block.norm}")
    return norm.tensors[0].shape[0]
