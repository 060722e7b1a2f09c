"""Families without a table: transformers' tensor-parallel plan, where all of its entries are known.

Source: transformers 5.23, `base_model_tp_plan` of configuration classes. No code that comes with a checkpoint
is run: only the library's own classes are looked at.
"""

from typing import Any, Final

import msgspec

from reshard.architectures.schema import Architecture, Module, Role
from reshard.model import Model

_STYLES: Final[dict[str, Role]] = {
    "colwise": "column",
    "rowwise": "row",
    "replicate": "replicated",
    "replicated_with_grad_allreduce": "replicated",
}
#: Modules whose outputs or inputs are heads, which must not be cut, and those that formats fuse.
_KNOWN: Final[dict[str, Role]] = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "attention_output",
    "gate_proj": "mlp_gate",
    "up_proj": "mlp_up",
    "down_proj": "mlp_output",
}


def with_plan(model: Model) -> Model:
    """The model with a table made of transformers' plan, where it has none and the plan allows it."""
    if model.table is not None or model.geometry is None:
        return model
    # A second or two, and only for families without a table.
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    try:
        kind: Any = CONFIG_MAPPING[model.model_type]
        base: Any = MODEL_MAPPING[kind]
    except (KeyError, ImportError):
        return model
    table = _table(
        model.model_type, dict(getattr(kind, "base_model_tp_plan", None) or {}), base.base_model_prefix
    )
    return model if table is None else msgspec.structs.replace(model, table=table)


def _table(model_type: str, plan: dict[str, str], prefix: str) -> Architecture | None:
    base: dict[str, Role | Module | tuple[Module, ...]] = {"embed_tokens": "embedding"}
    for pattern, style in plan.items():
        role = _STYLES.get(style)
        leaf = pattern.rpartition(".")[2]
        if role is None:
            return None
        known = _KNOWN.get(leaf, role)
        is_row = known in ("attention_output", "mlp_output")
        if role in ("column", "row") and is_row != (role == "row") and leaf in _KNOWN:
            return None
        base[pattern] = known if role in ("column", "row") else role
    if not {"query", "attention_output"} <= {role for role in base.values() if isinstance(role, str)}:
        return None
    return Architecture(
        model_types=(model_type,),
        source="transformers' base_model_tp_plan",
        geometry={},
        base=base,
        top={"lm_head": "head"},
        prefix=prefix,
        others="replicated",
    )
