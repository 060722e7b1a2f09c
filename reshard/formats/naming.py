"""From roles back to the names and shapes of the merged checkpoint, for formats that have neither.

A reader builds the logical tensors, lets the writer of its format lay them out, and finds its files
described, so that reader and writer cannot disagree.
"""

from collections.abc import Iterable, Mapping

import msgspec

from reshard.architectures.schema import Module, Role
from reshard.errors import DamagedFileError, InconsistentShardsError, UnsupportedSourceError
from reshard.lookup import entry_for
from reshard.messages import shown
from reshard.model import Model
from reshard.tensors import LogicalTensor, StoredTensor

_FUSED: dict[Role, tuple[Role, ...]] = {
    "query": ("query", "query_key_value"),
    "key": ("key", "query_key_value"),
    "value": ("value", "query_key_value"),
    "mlp_gate": ("mlp_gate", "mlp_gate_up"),
    "mlp_up": ("mlp_up", "mlp_gate_up"),
}


class Name(msgspec.Struct, frozen=True, kw_only=True):
    """A module of the merged checkpoint.

    Attributes:
        module: its full name.
        role: its role; a fused one where the family fuses.
        entry: the table's.
    """

    module: str
    role: Role
    entry: Module


def module_of(model: Model, role: Role, index: int | None) -> Name | None:
    """The module that plays `role` in block `index`, or outside all blocks; None when the family has none.

    Args:
        model: the configuration.
        role: which part of the model.
        index: the block's number; None outside all blocks.
    """
    table, _ = model.known()
    for patterns, prefix in ((table.base, table.prefix), (table.top, "")):
        for pattern, value in patterns.items():
            entry = entry_for(value, table, model)
            if entry is None or entry.role not in _FUSED.get(role, (role,)):
                continue
            if pattern.count("*") != (index is not None):
                continue
            path = pattern.replace("*", str(index))
            return Name(module=f"{prefix}.{path}" if prefix else path, role=entry.role, entry=entry)
    return None


class Expected:
    """Logical tensors, built from what a format's files are seen to hold."""

    def __init__(self, model: Model, dtype: str, intermediate: int) -> None:
        """Start with none.

        Args:
            model: the configuration.
            dtype: of all tensors.
            intermediate: features inside the MLP.
        """
        self.model, self.dtype, self.intermediate = model, dtype, intermediate
        self.tensors: dict[str, LogicalTensor] = {}

    def add(self, role: Role, param: str, index: int | None, shape: tuple[int, ...] = ()) -> str:
        """Add the parameter of the module with `role`; its name.

        Args:
            role: which module; where the family fuses it with others, the fused one is added.
            param: `weight` or `bias`.
            index: the block's number; None outside all blocks.
            shape: of roles whose shape the geometry does not give.

        Raises:
            UnsupportedSourceError: the family has no such module.
        """
        named = module_of(self.model, role, index)
        if named is None:
            raise UnsupportedSourceError(
                f"the files hold a {role}, which {self.model.model_type!r} does not have; is `config` the "
                "right one?"
            )
        name = f"{named.module}.{param}"
        full = shape or self._shape(named.role, param)
        if named.entry.conv1d and len(full) == 2:
            full = full[::-1]
        self.tensors[name] = LogicalTensor(dtype=self.dtype, shape=full)
        return name

    def _shape(self, role: Role, param: str) -> tuple[int, ...]:
        geometry = self.model.known()[1]
        query, kv = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
        outputs = {
            "query": query,
            "key": kv,
            "value": kv,
            "query_key_value": query + 2 * kv,
            "mlp_gate": self.intermediate,
            "mlp_up": self.intermediate,
            "mlp_gate_up": 2 * self.intermediate,
        }.get(role, geometry.hidden)
        inputs = {"attention_output": query, "mlp_output": self.intermediate}.get(role, geometry.hidden)
        is_vector = param == "bias" or role.endswith("norm")
        return (outputs,) if is_vector else (outputs, inputs)


def placed(
    laid_out: Iterable[StoredTensor],
    held: Mapping[str, StoredTensor],
    name: str,
    *,
    optional: Iterable[str] = (),
) -> tuple[StoredTensor, ...]:
    """What the writer would store in a file, with the offsets of what the file called `name` holds.

    Args:
        laid_out: what the writer would store in the file.
        held: key → tensor in the file, with its offset.
        name: the file's, for messages.
        optional: keys that may be missing.

    Raises:
        InconsistentShardsError: a tensor is missing or has another shape: another degree, or another model.
    """
    wanted = {t.name: t for t in laid_out}
    missing = tuple(sorted(set(wanted) - set(held) - set(optional)))
    if missing:
        raise InconsistentShardsError(
            f"{name} has no {shown(missing)}; it is of another model, or incomplete"
        )
    placed_tensors = []
    for key, stored in wanted.items():
        in_file = held.get(key)
        if in_file is None:
            continue
        if in_file.shape != stored.stored_shape:
            raise InconsistentShardsError(
                f"{name} has {key} as {list(in_file.shape)} where {list(stored.stored_shape)} is expected; "
                "it is of another degree, or another model than the configuration"
            )
        strides = in_file.element_strides()
        if stored.transposed:
            strides = (*strides[:-2], strides[-1], strides[-2])
        placed_tensors.append(
            msgspec.structs.replace(
                stored, dtype=in_file.dtype, offset_bytes=in_file.offset_bytes, strides=strides
            )
        )
    return tuple(placed_tensors)


def one_dtype(tensors: Iterable[StoredTensor], name: str) -> str:
    """The dtype of all floating tensors.

    Raises:
        DamagedFileError: there are several.
    """
    kinds = sorted({t.dtype for t in tensors if "float" in t.dtype})
    if len(kinds) != 1:
        raise DamagedFileError(f"{name} mixes {' and '.join(kinds) or 'no floating dtypes'}; one is expected")
    return kinds[0]
