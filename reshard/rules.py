"""From a tensor's name to its role, and from its role to the ways in which it may be cut. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from .architectures.schema import Module, Role
from .cuts import COMPANIONS, PLAIN, Cut, check_parameter, check_recipe, companion_cut, weight_shape
from .errors import CannotSplitError, DamagedFileError, InconsistentShardsError, UnknownArchitectureError
from .layout import Axis, Part
from .lookup import find
from .model import Geometry, Model
from .tensors import LogicalTensor

_COLUMN: Final = ("query", "key", "value", "query_key_value", "mlp_gate", "mlp_up", "mlp_gate_up", "column")
_ROW: Final = ("attention_output", "mlp_output", "row")
_VOCABULARY: Final = ("embedding", "head", "head_bias")
_SIDES: Final[tuple[Literal["outputs"], Literal["inputs"]]] = ("outputs", "inputs")
#: Roles that some format shares out.
_CUT: Final = (*_COLUMN, *_ROW, *_VOCABULARY, "heads_on_columns")


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
    """Which tensors a format cuts.

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
        side = self._side(rule.role)
        if side is None:
            return None
        check_parameter(rule.name, rule.param)
        return self._even(rule.outputs if side == "outputs" else rule.inputs)

    def _side(self, role: Role) -> Literal["outputs", "inputs"] | None:
        """Along which side of a module the ranks share it out; None: it is whole on every rank."""
        if role in _VOCABULARY:
            way = self.embedding if role == "embedding" else self.head
            return {"replicated": None, "vocabulary": _SIDES[0], "features": _SIDES[1]}[way]
        if role in _ROW:
            return _SIDES[1]
        return _SIDES[0] if role in _COLUMN or role == "heads_on_columns" else None

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

    def __init__(
        self, model: Model, tensors: Mapping[str, LogicalTensor], *, is_checked: bool = True
    ) -> None:
        """Prepare for `tensors`, the model's logical ones; without checks their shapes are not compared.

        Args:
            model: the configuration with its table.
            tensors: the model's logical tensors.
            is_checked: whether shapes are compared with the configuration's.

        Raises:
            UnknownArchitectureError: no table for this family.
        """
        self.model = model
        self.table, self.geometry = model.known()
        self.tensors = tensors
        self._is_checked = is_checked

    def rule(self, name: str, tensor: LogicalTensor | None = None) -> Rule:
        """What the tensor called `name` is.

        Args:
            name: its name.
            tensor: its shape, when it is not one of the model's logical tensors but the alias of one.

        Raises:
            UnknownArchitectureError: the family's table does not mention it.
            DamagedFileError: the configuration contradicts its shape, or does not explain it.
        """
        match = find(self.table, self.model, name)
        if match is None:
            raise UnknownArchitectureError(
                f"the table of {self.model.model_type!r} does not say what {name!r} is; "
                f"add its module to reshard/architectures/{self.table.model_types[0]}.toml"
            )
        entry, module, param, stars = match
        if entry.role in _CUT:
            check_recipe(name, param, self.model)
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
        if param in COMPANIONS and shape:
            return self._companion_cuts(entry, module, shape, name)
        if not shape or param not in PLAIN:
            return None, None
        out = self._axis(entry, "outputs")
        inner = self._axis(entry, "inputs")
        if param == "bias" or len(shape) == 1:
            return self._cut(out, len(shape) - 1, shape, name), None
        first, last = (-1, -2) if entry.conv1d else (-2, -1)
        return self._cut(out, len(shape) + first, shape, name), self._cut(
            inner, len(shape) + last, shape, name
        )

    def _companion_cuts(
        self, entry: Module, module: str, shape: tuple[int, ...], name: str
    ) -> tuple[Cut | None, Cut | None]:
        weight = weight_shape(module, self.tensors, self.model)

        def cut(dim: Literal[0, 1]) -> Cut | None:
            way = self._axis(entry, _SIDES[dim])
            if way is None or dim >= len(shape):
                return None
            self._checked(way(weight[dim]), weight[dim], name)
            return companion_cut(way, dim, weight[dim], shape[dim], name, self.model)

        return cut(0), cut(1)

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

    Args:
        model: the configuration.
        policy: how the shares were cut.
        name: the tensor's.
        shapes: of the ranks' shares, by rank.

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
    rules = Rules(model, {name: LogicalTensor(dtype="uint8", shape=summed)}, is_checked=False)
    way = policy.cut(rules.rule(name))
    if way is None:
        return shapes[0]
    return tuple(way.axis.extent if i == way.dim else n for i, n in enumerate(shapes[0]))


def check_heads(model: Model, tp_size: int) -> None:
    """Check that no attention head is cut.

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


def _heads(name: str, geometry: Geometry) -> Part:
    if name == "query":
        return Part(name=name, units=geometry.heads, width=geometry.head_dim)
    return Part(name=name, units=geometry.kv_heads, width=geometry.head_dim, sharing="replicated")


def _features(extent: int) -> Axis:
    return Axis(parts=(Part(name="features", units=extent, sharing="uneven"),))
