"""The form of a family's table. An unknown key is an error."""

from typing import Any, Literal

import msgspec

Role = Literal[
    "embedding",  # token embedding: rows are the vocabulary
    "position",  # learned positions, token types: small, on every rank
    "embedding_norm",
    "input_norm",
    "post_attention_norm",  # the norm before the MLP
    "final_norm",
    "norm",  # any other
    "query",
    "key",
    "value",
    "query_key_value",
    "attention_output",
    "mlp_gate",
    "mlp_up",  # the first Linear of an MLP without a gate as well
    "mlp_gate_up",
    "mlp_output",
    "head",  # hidden state to vocabulary
    "head_bias",  # a bias of the vocabulary's length that is a parameter of its own
    "heads_on_columns",  # rows × heads, as T5's relative bias
    "module_per_head",  # one module for every head: no rank can hold a share under the same names
    "column",  # known only from another library's plan: cut evenly along the outputs
    "row",  # the same along the inputs
    "replicated",  # anything else that every rank holds whole
]

#: The parts of fused weights, and whose units they count.
PartName = Literal["query", "key", "value", "gate", "up"]


class Module(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a module, or a parameter with a name of its own, is.

    Attributes:
        role: its part in the model.
        when: values that the configuration must have for this entry to count.
        parts: what a fused weight's output rows consist of, in order inside a block.
        blocks: how many blocks the rows form: a number, one per `heads`, or one per `kv_heads`.
        conv1d: the weight is stored `[in, out]`.
    """

    role: Role
    when: dict[str, Any] = {}
    parts: tuple[PartName, ...] = ()
    blocks: int | Literal["heads", "kv_heads"] = 1
    conv1d: bool = False


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value under a condition.

    Attributes:
        value: a number, or the name of the configuration's attribute that has it.
        when: values that the configuration must have.
    """

    value: int | str
    when: dict[str, Any] = {}


class Architecture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One family.

    Attributes:
        model_types: the configuration's `model_type`, one or several.
        source: where the layout was read.
        prefix: transformers' `base_model_prefix`; checkpoints of the bare model lack it. Empty: has none.
        defaults: what the configuration's class sets where the file says nothing.
        geometry: `heads`, `kv_heads`, `head_dim`, `hidden`, `vocab`, `layers`: the attribute, or several that
            are tried in order. `head_dim` may be missing (hidden / heads), `kv_heads` as well (heads).
        base: module patterns inside the base model; `*` stands for one segment of a dotted name. The first
            that matches counts; several entries for one pattern are tried in order.
        top: module patterns outside it, such as `lm_head`.
        others: what modules are that no pattern names; None: an error, which is what a table wants.
    """

    model_types: tuple[str, ...]
    source: str
    geometry: dict[str, str | int | tuple[str | int | Choice, ...]]
    base: dict[str, Role | Module | tuple[Module, ...]]
    top: dict[str, Role | Module | tuple[Module, ...]] = {}
    prefix: str = ""
    defaults: dict[str, Any] = {}
    others: Role | None = None
