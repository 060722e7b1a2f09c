"""Which models DeepSpeed's blocks compute as their own would. Pure.

A replaced block computes one thing whatever the configuration says, and says nothing where that is another
thing (`reshard.formats.injected` has the settings, found on GPUs). A graph has no configuration, but what its
modules are and where their results go shows most of those settings. What it does not show (the base of rotary
angles, a window's width) the emitted script finds in the checkpoint's configuration.
Source: deepspeed.module_inject.containers and deepspeed.model_implementations.transformers, 0.19.8.
"""

from typing import Final

import msgspec

from planner.graph.schema import ModuleGraph, Node
from reshard.formats.injected import BLOCKS, Block


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One family's block, and what in it a model may be configured to compute otherwise.

    Attributes:
        block: where its modules are.
        sequential_norm: a norm that reads this block's own sum although DeepSpeed's block feeds it the
            block's input, when a model is so configured; or None.
        residual_norm: a norm whose result joins the residual although DeepSpeed's block adds what the norm
            read, when a model is so configured; or None.
        has_relu: whether the block computes ReLU.
        qkv_bias: whether the block needs biases in attention's projections.
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

#: Families that load and do not give the plain model's tokens, or fail; (model type → what happens).
KNOWN_FAILURES: Final = {
    "llama": "DeepSpeed's Llama block and transformers 4.43's cache do not fit each other",
    "gpt2": "DeepSpeed cannot load GPT-2's blocks from pre-shards",
}

#: GPT-Neo's kernel misplaces the window of local attention once a sequence fills it. Every released GPT-Neo
#: has this window; the emitted script reads the checkpoint's own.
GPT_NEO_WINDOW: Final = 256


def unlike(graph: ModuleGraph) -> str | None:
    """Why DeepSpeed's blocks would not compute this model, as a clause; None where they do."""
    family = FAMILIES.get(graph.model_type)
    if family is None:
        known = f"{', '.join(sorted(FAMILIES))} have"
        return KNOWN_FAILURES.get(
            graph.model_type,
            f"DeepSpeed has no block for {graph.model_type} that was found to compute it; {known}",
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
    """Why one block is computed otherwise, as a clause."""

    def own(name: str) -> str:
        return f"{block}.{name}"

    modules = family.block
    parts = (modules.norm, modules.qkv, modules.out, modules.inter, modules.mlp_norm or modules.norm)
    absent = [part for part in parts if own(part) not in by_name]
    if absent:
        return f"DeepSpeed's block takes {absent[0]}, which this one lacks"
    if (own(modules.norm), own(modules.qkv)) not in edges:
        return "DeepSpeed's block norms before attention and the MLP, this model after them"
    if family.sequential_norm and (block, own(family.sequential_norm)) in edges:
        return "DeepSpeed's block feeds attention and the MLP the same input, this model one after the other"
    if family.residual_norm and (own(family.residual_norm), block) in edges:
        return "DeepSpeed's block adds what its norm read to the residual, this model what the norm gave"
    if not family.has_relu and any(n.class_name == "ReLU" for n in by_name.values() if n.block == block):
        return "DeepSpeed's block computes GELU, this model ReLU"
    if family.qkv_bias and all(t.name != "bias" for t in by_name[own(modules.qkv)].tensors):
        return "DeepSpeed's block needs biases in attention's projections"
    inner, hidden = _weight(by_name[own(modules.inter)])
    if inner != 4 * hidden:
        return f"DeepSpeed's block needs an MLP of 4 x hidden, and has {inner} for {hidden}"
    return None


def _weight(node: Node) -> tuple[int, int]:
    """Outputs and inputs of a Linear."""
    outputs, inputs = next(t.shape for t in node.tensors if len(t.shape) == 2)
    return outputs, inputs


def num_heads(graph: ModuleGraph) -> int:
    """Attention heads of the whole model, whether `graph` is of all of it or of one rank's part.

    Where roles are not known: as many as there would be of 64 features, the narrowest in these families.
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
