"""How a runtime cuts a model beyond what the graph says: the vocabulary, biases, fused blocks."""

from dataclasses import dataclass
from typing import Final, Literal

#: How a weight over the vocabulary is cut: not at all, along its hidden features, or along its rows.
Vocabulary = Literal["whole", "features", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedBlock:
    """What the host issues for one block in a decode step when the runtime replaces it by its own.

    Attributes:
        attention_ops: between the query-key-value product and the output product.
        other_ops: besides the four products, each of which counts as one: residual additions and
            collectives, less what is one operation with a product.
        cache_in_place: whether the cache lies in the runtime's workspace and is appended to there.
    """

    attention_ops: int
    other_ops: int
    cache_in_place: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRules:
    """One runtime's cut.

    Attributes:
        name: of the runtime.
        head: how the output head is cut. `features` sums logits over the ranks, `rows` gathers them.
        embedding: how the token embedding is cut; `rows` sums hidden states over the ranks.
        experts: whether experts that are stacked in one tensor are cut; otherwise every rank has all.
        row_parallel_ops: operations that a row-parallel Linear takes beyond its product (the
            collective, and the bias that is added after it).
        fused: (model type → its block), with `""` for every other type, when blocks are replaced.
    """

    name: str
    head: Vocabulary
    embedding: Vocabulary = "whole"
    experts: bool = False
    row_parallel_ops: int = 0
    fused: dict[str, FusedBlock] | None = None

    def block(self, model_type: str) -> FusedBlock | None:
        """The block that replaces this model type's, or None when blocks stay as they are."""
        return None if self.fused is None else self.fused.get(model_type, self.fused[""])


#: deepspeed.module_inject.layers, 0.19.8: embeddings and norms stay whole; LmHeadLinearAllreduce cuts the
#: head along its inputs; LinearAllreduce issues product, all-reduce and bias apart.
DEEPSPEED_TP: Final = CutRules(name="deepspeed-tp", head="features", row_parallel_ops=2)

#: transformers 5.23: `lm_head` is `colwise_gather_output`, and `embed_tokens` `embedding_rowwise` where the
#: base model calls its embedding so; stacked experts are `packed_colwise` and `rowwise`.
TRANSFORMERS_TP: Final = CutRules(
    name="transformers-tp", head="rows", embedding="rows", experts=True, row_parallel_ops=1
)

#: deepspeed.ops.transformer.inference, 0.19.8: norms and biases ride along with the products (QKVGemmOp,
#: MLPGemmOp, which is both products of the MLP), softmax_context takes scores, cache and context in one;
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
