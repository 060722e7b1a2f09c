"""From a tensor's name to its role, and from its role to the ways in which it may be cut. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from .architectures.schema import Architecture, Module, Role
from .errors import (
    CannotSplitError,
    DamagedFileError,
    InconsistentShardsError,
    UnknownArchitectureError,
)
from .layout import Axis, Interval, Part, rank_intervals
from .model import Geometry, Model, holds
from .tensors import Logical

#: Tensors that accompany a quantized weight: suffix → how many dimensions of the weight they follow.
_SCALES: Final = ("weight_scale", "weight_zero_point", "SCB", "weight_packed")
_SCALARS: Final = ("weight_format", "input_scale", "input_zero_point")

_COLUMN: Final = ("query", "key", "value", "query_key_value", "mlp_gate", "mlp_up", "mlp_gate_up", "column")
_ROW: Final = ("attention_output", "mlp_output", "row")
_VOCABULARY: Final = ("embedding", "head", "head_bias")


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """One way to share a tensor out.

    Attributes:
        dim: the dimension that is cut.
        axis: how the *weight's* dimension is made of parts.
        ratio: elements of the weight's dimension per element of this one (group size, or packing).
    """

    dim: int
    axis: Axis
    ratio: int = 1

    def intervals(self, name: str, tp_size: int, tp_rank: int) -> tuple[Interval, ...]:
        """The rank's intervals of dimension `dim`, in the rank's order.

        Raises:
            CannotSplitError: the degree cuts a head or a quantization group; it names degrees that work.
        """
        try:
            found = rank_intervals(self.axis, tp_size, tp_rank)
        except CannotSplitError as error:
            raise CannotSplitError(f"{name}: {error}") from None
        if self.ratio == 1:
            return found
        if any(bound % self.ratio for interval in found for bound in interval):
            raise CannotSplitError(
                f"{name}: a cut at tp_size={tp_size} goes through a group of {self.ratio} quantized "
                "elements; "
                f"degrees that work: {', '.join(map(str, self._degrees())) or 'none'}"
            )
        return tuple((begin // self.ratio, end // self.ratio) for begin, end in found)

    def _degrees(self) -> list[int]:
        return [n for n in range(1, 65) if self._works(n)]

    def _works(self, tp_size: int) -> bool:
        try:
            bounds = [b for r in range(tp_size) for i in rank_intervals(self.axis, tp_size, r) for b in i]
        except CannotSplitError:
            return False
        return all(bound % self.ratio == 0 for bound in bounds)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What a tensor is.

    Attributes:
        name: the tensor's.
        role: its module's part in the model.
        module: the module's name.
        param: the rest of the name: `weight`, `bias`, …; empty when the whole name is in the table.
        stars: what the pattern's wildcards stand for: the layer's number, an expert's.
        outputs: the cut along the module's outputs (the vocabulary, for embedding and head).
        inputs: the cut along its inputs (the features, for embedding and head).
        entry: the table's.
    """

    name: str
    role: Role
    module: str
    param: str
    stars: tuple[str, ...]
    outputs: Cut | None
    inputs: Cut | None
    entry: Module


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Where formats differ.

    Attributes:
        embedding: whole on every rank, or cut along the vocabulary or the features.
        head: the same.
        uneven: whether the MLP and the vocabulary may be cut where the degree is no divisor.
        name: the format, for messages.
    """

    name: str
    embedding: Literal["replicated", "vocabulary", "features"] = "replicated"
    head: Literal["replicated", "vocabulary", "features"] = "replicated"
    uneven: bool = False

    def cut(self, rule: Rule) -> Cut | None:
        """The cut that this format makes; None where every rank holds all of the tensor."""
        if rule.role == "module_per_head":
            raise CannotSplitError(f"{rule.name}: {self.name} cannot share out one module for every head")
        if rule.role in _COLUMN or rule.role == "heads_on_columns":
            return self._even(rule.outputs)
        if rule.role in _ROW:
            return self._even(rule.inputs)
        if rule.role in _VOCABULARY:
            way = self.embedding if rule.role == "embedding" else self.head
            return self._even({"replicated": None, "vocabulary": rule.outputs, "features": rule.inputs}[way])
        return None

    def _even(self, cut: Cut | None) -> Cut | None:
        if cut is None or self.uneven:
            return cut
        parts = tuple(
            msgspec.structs.replace(p, sharing="whole") if p.sharing == "uneven" else p
            for p in cut.axis.parts
        )
        return msgspec.structs.replace(cut, axis=msgspec.structs.replace(cut.axis, parts=parts))


class Rules:
    """The rules of one model's tensors."""

    def __init__(self, model: Model, tensors: Mapping[str, Logical], *, is_checked: bool = True) -> None:
        """Prepare for `tensors`, the model's logical ones; without checks their shapes are not compared.

        Raises:
            UnknownArchitectureError: no table for this family.
        """
        self.model = model
        self.table, self.geometry = model.known()
        self.tensors = tensors
        self._is_checked = is_checked

    def rule(self, name: str, tensor: Logical | None = None) -> Rule:
        """What the tensor called `name` is.

        Args:
            name: its name.
            tensor: its shape, when it is not one of the model's logical tensors but the alias of one.

        Raises:
            UnknownArchitectureError: the family's table does not mention it.
            DamagedFileError: its shape contradicts the configuration.
        """
        found = find(self.table, self.model, name)
        if found is None:
            raise UnknownArchitectureError(
                f"the table of {self.model.model_type!r} does not say what {name!r} is; "
                f"add its module to reshard/architectures/{self.table.model_types[0]}.toml"
            )
        entry, module, param, stars = found
        shape = (tensor or self.tensors[name]).shape
        outputs, inputs = self._cuts(entry, module, name, param, shape)
        return Rule(
            name=name,
            role=entry.role,
            module=module,
            param=param,
            stars=stars,
            outputs=outputs,
            inputs=inputs,
            entry=entry,
        )

    def _cuts(
        self, entry: Module, module: str, name: str, param: str, shape: tuple[int, ...]
    ) -> tuple[Cut | None, Cut | None]:
        if entry.role == "heads_on_columns":
            part = Part(name="heads", units=self.geometry.heads)
            return Cut(dim=1, axis=self._checked(Axis(parts=(part,)), shape[1], name)), None
        if not shape or param in _SCALARS or param == "weight_shape":
            return None, None
        if param in _SCALES:
            return self._scale_cuts(entry, module, shape, param)
        out = self._axis(entry, "outputs")
        inner = self._axis(entry, "inputs")
        if param == "bias" or len(shape) == 1:
            return self._cut(out, len(shape) - 1, shape, name), None
        first, last = (-1, -2) if entry.conv1d else (-2, -1)
        return self._cut(out, len(shape) + first, shape, name), self._cut(
            inner, len(shape) + last, shape, name
        )

    def _scale_cuts(
        self, entry: Module, module: str, shape: tuple[int, ...], param: str
    ) -> tuple[Cut | None, Cut | None]:
        weight = self._weight_shape(module)
        out, inner = self._axis(entry, "outputs"), self._axis(entry, "inputs")
        name = f"{module}.{param}"
        outputs = self._scaled(out, 0, weight[0], shape[0], name)
        inputs = self._scaled(inner, 1, weight[1], shape[1], name) if len(shape) > 1 else None
        return outputs, inputs

    def _weight_shape(self, module: str) -> tuple[int, int]:
        """`[out, in]` of the quantized weight, unpacked."""
        plain = self.tensors.get(f"{module}.weight")
        if plain is not None and len(plain.shape) == 2:
            return plain.shape[0], plain.shape[1]
        packed = self.tensors.get(f"{module}.weight_packed")
        bits = _bits(self.model)
        if packed is None or len(packed.shape) != 2 or bits is None:
            raise DamagedFileError(f"{module} has scales, but no weight in a form that is known")
        return packed.shape[0], packed.shape[1] * (32 // bits)

    def _axis(self, entry: Module, side: Literal["outputs", "inputs"]) -> Callable[[int], Axis] | None:
        """A function from the dimension's extent to its axis; None where the role is not cut that way."""
        geometry, role = self.geometry, entry.role
        if role in _VOCABULARY:
            label = "tokens" if side == "outputs" else "features"
            return lambda extent: Axis(parts=(Part(name=label, units=extent, sharing="uneven"),))
        if side == "inputs":
            if role == "attention_output":
                return lambda _: Axis(parts=(_heads("query", geometry),))
            return _features if role in _ROW else None
        if role in ("query", "key", "value"):
            return lambda _: Axis(parts=(_heads(role, geometry),))
        if role == "query_key_value":
            blocks = {"heads": geometry.heads, "kv_heads": geometry.kv_heads}.get(str(entry.blocks))
            parts = tuple(_heads(p, geometry) for p in entry.parts)
            return lambda _: Axis(parts=parts, blocks=blocks or int(entry.blocks), scales=blocks is not None)
        if role == "mlp_gate_up":
            return lambda extent: Axis(
                parts=tuple(
                    Part(name=p, units=extent // len(entry.parts), sharing="uneven") for p in entry.parts
                )
            )
        return _features if role in _COLUMN else None

    def _cut(
        self, axis: Callable[[int], Axis] | None, dim: int, shape: tuple[int, ...], name: str
    ) -> Cut | None:
        if axis is None:
            return None
        return Cut(dim=dim, axis=self._checked(axis(shape[dim]), shape[dim], name))

    def _scaled(
        self, axis: Callable[[int], Axis] | None, dim: int, weight: int, extent: int, name: str
    ) -> Cut | None:
        """A cut of a companion whose dimension has `extent` elements where its weight has `weight`."""
        if axis is None or extent == 1:
            return None
        if weight % extent:
            raise CannotSplitError(
                f"{name}: {extent} scales do not divide the weight's {weight} elements evenly"
            )
        return Cut(dim=dim, axis=self._checked(axis(weight), weight, name), ratio=weight // extent)

    def _checked(self, axis: Axis, extent: int, name: str) -> Axis:
        if self._is_checked and axis.extent != extent:
            parts = " + ".join(f"{p.units} {p.name} × {p.width}" for p in axis.parts)
            raise DamagedFileError(
                f"{name} has {extent} rows or columns where the configuration gives {parts} = {axis.extent}"
            )
        return axis


def logical_shape(
    model: Model, policy: Policy, name: str, shapes: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """The shape of a tensor of which `shapes` are the ranks' shares, cut as `policy` cuts.

    Raises:
        UnknownArchitectureError: the family's table does not mention it.
        InconsistentShardsError: the shares cannot be of one tensor.
    """
    if len({len(shape) for shape in shapes}) != 1:
        raise InconsistentShardsError(f"the ranks' shares of {name} have different numbers of dimensions")
    if len(shapes) == 1:
        return shapes[0]
    # The rule needs an extent before it can say which dimension is cut; heads ignore it.
    summed = tuple(sum(extents) for extents in zip(*shapes, strict=True))
    rules = Rules(model, {name: Logical(dtype="uint8", shape=summed)}, is_checked=False)
    way = policy.cut(rules.rule(name))
    if way is None:
        return shapes[0]
    return tuple(way.axis.extent if i == way.dim else n for i, n in enumerate(shapes[0]))


def check_heads(model: Model, tp_size: int) -> None:
    """See to it that no attention head is cut.

    Raises:
        CannotSplitError: one would be; it names the degrees that work.
    """
    geometry = model.known()[1]
    heads, kv_heads = geometry.heads, geometry.kv_heads
    works = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
    if tp_size not in works:
        raise CannotSplitError(
            f"tp_size={tp_size} would cut attention heads: this {model.model_type} has {heads} query and "
            f"{kv_heads} key/value heads; degrees that work: {', '.join(map(str, works))}"
        )


def find(table: Architecture, model: Model, name: str) -> tuple[Module, str, str, tuple[str, ...]] | None:
    """The table's entry for the tensor `name`: entry, module, parameter, what the wildcards stand for."""
    if table.prefix and name.startswith(table.prefix + "."):
        tries = ((table.base, table.prefix + "."), (table.top, ""))
    else:
        tries = ((table.top, ""), (table.base, ""))
    module, _, param = name.rpartition(".")
    for patterns, prefix in tries:
        for path, rest in ((name, ""), (module, param)):
            for pattern, value in patterns.items():
                stars = _match(pattern, path.removeprefix(prefix))
                entry = None if stars is None else _entry(value, table, model)
                if stars is not None and entry is not None:
                    return entry, path, rest, stars
    return None


def _match(pattern: str, path: str) -> tuple[str, ...] | None:
    wanted, given = pattern.split("."), path.split(".")
    if len(wanted) != len(given):
        return None
    stars = []
    for want, have in zip(wanted, given, strict=True):
        if want == "*":
            stars.append(have)
        elif want != have:
            return None
    return tuple(stars)


def _entry(value: Role | Module | tuple[Module, ...], table: Architecture, model: Model) -> Module | None:
    if isinstance(value, str):
        return Module(role=value)
    options = value if isinstance(value, tuple) else (value,)
    return next((o for o in options if holds(model.config, table, o.when)), None)


def _heads(name: str, geometry: Geometry) -> Part:
    if name == "query":
        return Part(name=name, units=geometry.heads, width=geometry.head_dim)
    return Part(name=name, units=geometry.kv_heads, width=geometry.head_dim, sharing="replicated")


def _features(extent: int) -> Axis:
    return Axis(parts=(Part(name="features", units=extent, sharing="uneven"),))


def _bits(model: Model) -> int | None:
    groups = (model.config.get("quantization_config") or {}).get("config_groups") or {}
    found = {(g.get("weights") or {}).get("num_bits") for g in groups.values() if isinstance(g, dict)}
    bits = found.pop() if len(found) == 1 else None
    return bits if type(bits) is int and bits in (4, 8) else None
