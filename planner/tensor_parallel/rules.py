"""How a runtime cuts a model beyond the roles in the graph: embedding, output head, experts, fused blocks."""

from dataclasses import dataclass
from typing import Final, Literal

#: How a weight over the vocabulary is cut: not at all, along its hidden features, or along its rows.
Vocabulary = Literal["whole", "features", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedBlock:
    """Kernels that the host launches for one block in a decode step when the runtime fuses it.

    Attributes:
        attention_ops: between the query-key-value product and the output product.
        other_ops: besides the four products, each of which counts as one: residual additions and
            collectives, less those that are fused with a product.
        cache_in_place: whether the cache is in the runtime's workspace and appended to without a copy.
    """

    attention_ops: int
    other_ops: int
    cache_in_place: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRules:
    """How one runtime cuts models.

    Attributes:
        name: of the runtime.
        head: how the output head is cut. `features` sums logits over the ranks, `rows` gathers them.
        embedding: how the token embedding is cut; `rows` sums hidden states over the ranks.
        experts: whether experts that are stacked in one tensor are cut; otherwise every rank holds all.
        row_parallel_ops: operations that a row-parallel Linear takes beyond its product (the
            collective, and the bias that is added after it).
        fused: model type → its fused block, with `""` for every other type; None without fused blocks.
    """

    name: str
    head: Vocabulary
    embedding: Vocabulary = "whole"
    experts: bool = False
    row_parallel_ops: int = 0
    fused: dict[str, FusedBlock] | None = None

    def block(self, model_type: str) -> FusedBlock | None:
        """The fused block of a model type; None when the runtime fuses none."""
        return None if self.fused is None else self.fused.get(model_type, self.fused[""])


#: deepspeed.module_inject.layers, 0.19.8: embeddings and norms stay whole; LmHeadLinearAllreduce cuts the
#: head along its inputs; LinearAllreduce runs product, all-reduce and bias as three operations.
DEEPSPEED_TP: Final = CutRules(name="deepspeed-tp", head="features", row_parallel_ops=2)

#: transformers 5.23: `lm_head` is `colwise_gather_output`, and `embed_tokens` `embedding_rowwise` where the
#: base model's embedding has that name; stacked experts are `packed_colwise` and `rowwise`.
TRANSFORMERS_TP: Final = CutRules(
    name="transformers-tp", head="rows", embedding="rows", experts=True, row_parallel_ops=1
)

#: deepspeed.ops.transformer.inference, 0.19.8: norms and biases are fused with the products (QKVGemmOp,
#: MLPGemmOp, which is both products of the MLP), softmax_context is scores, cache and context in one kernel;
#: a residual addition and two collectives remain. BLOOM's attention (BloomSelfAttention) is torch around one
#: softmax: three slices made contiguous, two appends to the cache, two products, three on the mask.
KERNEL_INJECTION: Final = CutRules(
    name="kernel-injection",
    head="whole",
    fused={
        "bloom": FusedBlock(attention_ops=11, other_ops=2, cache_in_place=False),
        "": FusedBlock(attention_ops=3, other_ops=2),
    },
)
