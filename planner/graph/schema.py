"""The module graph: costs, tensors and constraints of each module, from traced forwards. Needs no torch.

Costs are polynomials in three lengths, so that a graph is traced once and priced for any workload:

- `batch`: sequences in the batch.
- `prompt`: tokens of the prompt (the encoder's input, for an encoder-decoder).
- `context`: tokens that a decode step's self-attention sees, its own included. In prefill it is not used.

The phases are *prefill* (one forward over the prompt; for an encoder-decoder the encoder and the
decoder's first token) and *decode* (one forward of one new token with a cache of `context - 1` tokens).
"""

from typing import Final

import msgspec

SCHEMA_VERSION: Final = 2


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Frozen, keyword-only; an unknown key in a file is an error; default values are not written to JSON."""


class Poly(msgspec.Struct, frozen=True, array_like=True):
    """A polynomial in batch b, prompt p and context c; the fields are its coefficients.

    `bp2` is the coefficient of b·p², and so on. In a prefill cost the c terms are zero.
    """

    const: float = 0.0
    b: float = 0.0
    p: float = 0.0
    bp: float = 0.0
    p2: float = 0.0
    bp2: float = 0.0
    c: float = 0.0
    bc: float = 0.0

    def __call__(self, *, batch: int, prompt: int, context: int = 0) -> float:
        """The value at these lengths.

        Args:
            batch: sequences in the batch.
            prompt: tokens of the prompt.
            context: tokens that a decode step's self-attention sees, its own included; 0 in prefill.
        """
        per_batch = self.b + self.bp * prompt + self.bp2 * prompt * prompt + self.bc * context
        return self.const + self.p * prompt + self.p2 * prompt * prompt + self.c * context + batch * per_batch


class PhaseCost(_Strict, frozen=True, kw_only=True):
    """Cost of one call of a module's own code in one phase, without the code of its submodules.

    Attributes:
        num_ops: aten operations dispatched, an estimate of kernel launches (views are not counted).
        flops: floating-point operations; a multiply-add is 2.
        moved_bytes: activation bytes that those operations read and write (weights and KV not counted).
        peak_bytes: highest number of live activation bytes of the whole model while this module's own code
            runs: the maximum over these polynomials. Weights and KV cache are not included; the residual
            stream, masks and everything else still referenced are, and so is a cache's copy-on-append.
    """

    num_ops: int
    flops: Poly = Poly()
    moved_bytes: Poly = Poly()
    peak_bytes: tuple[Poly, ...] = ()


class ItemsizeCost(_Strict, frozen=True, kw_only=True):
    """Both phases at one element size of the model's dtype."""

    prefill: PhaseCost
    decode: PhaseCost


class KvCost(_Strict, frozen=True, kw_only=True):
    """Bytes that a module adds to the KV cache, read from the cache object, at 2 bytes an element.

    Total for a batch: batch · (per_sequence + per_token · min(context, window) + per_prompt_token · prompt).

    Attributes:
        per_sequence: independent of length (state-space and convolution states).
        per_token: grows with the self-attention context.
        per_prompt_token: grows with the encoder's input (cross-attention).
        window: tokens after which `per_token` stops growing, or None.
        fixed_dtype: True when the bytes do not scale with the model's dtype.
    """

    per_sequence: float = 0.0
    per_token: float = 0.0
    per_prompt_token: float = 0.0
    window: int | None = None
    fixed_dtype: bool = False


class Tensor(_Strict, frozen=True, kw_only=True):
    """A parameter or buffer that a module owns directly.

    Attributes:
        name: its name inside the module, as in `weight`.
        shape: its dimensions.
        kind: `parameter`, `buffer` (in the state dict) or `scratch` (a buffer that is not).
        dtype: None when it takes the model's dtype, else its own (`float32`, `int64`, `bool`).
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "parameter"
    dtype: str | None = None

    @property
    def num_elements(self) -> int:
        """The product of the shape."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


class ModuleRole(_Strict, frozen=True, kw_only=True):
    """How a module's weight may be cut over ranks, as the traced operations allow.

    Attributes:
        role: `column` (cut along its outputs) or `row` (cut along its inputs: an all-reduce follows). A
            module with weights of both kinds, such as experts in one tensor, has the role `row`.
        num_groups: groups of indices that can be on different ranks: heads, KV groups, features. A degree
            works when it divides this number.
        sharded: fraction of the weight that is cut; the rest (keys and values of too few heads) is on
            every rank.
    """

    role: str
    num_groups: int
    sharded: float = 1.0


class Node(_Strict, frozen=True, kw_only=True):
    """One module that owns tensors or runs operations of its own.

    Attributes:
        name: fqn; the root module is "".
        class_name: its Python class.
        order: rank in execution order of the first forward.
        block: fqn of the no-split block it belongs to (its own fqn when it is one), or None.
        tensors: parameters and buffers that it owns directly.
        costs: by element size in bytes ("2" and "4") of the model's dtype.
        kv: what it adds to the KV cache, or None.
        num_calls: forwards of this module in one model forward (a shared module may run twice;
            0 when its tensors are used without calling it).
        tensor_parallel: how it may be cut over ranks; None when every rank holds it whole.
    """

    name: str
    class_name: str
    order: int
    block: str | None = None
    tensors: tuple[Tensor, ...] = ()
    costs: dict[str, ItemsizeCost] = {}
    kv: KvCost | None = None
    num_calls: int = 1
    tensor_parallel: ModuleRole | None = None


class Edge(_Strict, frozen=True, kw_only=True):
    """Activation flow in prefill: `source`'s results are read by `target`.

    Attributes:
        bytes_per_token: bytes for one token of one sequence at 2 bytes an element.
    """

    source: str
    target: str
    bytes_per_token: float


class ModuleGraph(_Strict, frozen=True, kw_only=True):
    """A whole model.

    Attributes:
        schema_version: of this file format.
        model_class: the transformers class that was traced.
        model_type: transformers' `model_type`.
        config_sha256: of the canonical configuration JSON (keys sorted, no private or version keys).
        versions: `{"torch": …, "transformers": …}` that traced it.
        nodes: in execution order.
        edges: activation flow between modules.
        blocks: fqns of the no-split blocks, in execution order.
        block_classes: the Python class of each of them; a block need not be a node.
        co_located: groups of fqns that must share one device (besides blocks and ties).
        main_device: fqns that the runtime keeps with the root module, whatever a map says.
        ties: groups of tensor fqns that are one tensor; the first is the canonical one.
        leaks: sentences about operations that combine devices inside a hooked module, which no placement can
            prevent.
        is_encoder_decoder: whether there is an encoder.
        vocab_size: rows of the output head; 0 for a model without one.
        generates: whether `generate()` applies (False for an encoder such as BERT).
        max_positions: longest sequence the configuration allows, or None.
    """

    schema_version: int
    model_class: str
    model_type: str
    config_sha256: str
    versions: dict[str, str]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    blocks: tuple[str, ...]
    block_classes: tuple[str, ...] = ()
    co_located: tuple[tuple[str, ...], ...] = ()
    main_device: tuple[str, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    leaks: tuple[str, ...] = ()
    is_encoder_decoder: bool = False
    vocab_size: int = 0
    generates: bool = True
    max_positions: int | None = None

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters, a tied one counted once."""
        duplicates = {fqn for group in self.ties for fqn in group[1:]}
        return sum(
            tensor.num_elements
            for node in self.nodes
            for tensor in node.tensors
            if tensor.kind == "parameter" and _join(node.name, tensor.name) not in duplicates
        )


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
