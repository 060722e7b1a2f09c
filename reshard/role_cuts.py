"""From roles to intervals: which indices of which tensor are a rank's. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Final, TypeVar

import msgspec

from .cuts import COMPANIONS, SCALARS, SHAPE
from .errors import CannotSplitError, InconsistentShardsError, UnsupportedSourceError
from .layout import Interval, joined
from .messages import shown
from .model import Model
from .roles import Roles, WeightRoles
from .tensors import LogicalTensor

#: Of an index that is in no group.
_EVERYBODY: Final = -1

_Value = TypeVar("_Value")


class RoleCut(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that is shared out at one degree.

    Attributes:
        dim: the dimension that is cut.
        ranks: every rank's intervals of it, ascending.
    """

    dim: int
    ranks: tuple[tuple[Interval, ...], ...]

    def intervals(self, _name: str, tp_size: int, tp_rank: int) -> tuple[Interval, ...]:
        """The rank's intervals of dimension `dim`, in the rank's order.

        Args:
            _name: not needed; for the same form as `Cut.intervals`.
            tp_size: the degree, which is that of `ranks`.
            tp_rank: the rank, from 0 on.
        """
        assert tp_size == len(self.ranks), "a cut by roles is of one degree"
        return self.ranks[tp_rank]


def cuts_by_roles(
    roles: Roles, model: Model, tensors: Mapping[str, LogicalTensor], tp_size: int
) -> dict[str, RoleCut | None]:
    """How every tensor is shared out; None: whole on every rank.

    Args:
        roles: what to go by.
        model: the checkpoint's.
        tensors: its tensors, aliases included.
        tp_size: the degree. At 1 nothing is cut, but everything is checked.

    Raises:
        InconsistentShardsError: the roles are of another model.
        CannotSplitError: they contradict themselves, leave something open, or do not allow this degree.
        UnsupportedSourceError: a quantized checkpoint.
    """
    _check_model(roles, model, tensors)
    names = Names(tensors)
    weights = names.matches(roles.weights)
    once = names.matches(dict.fromkeys(roles.bias_once, True))
    _check_biases(weights, once, tensors)
    _check_degree(roles, weights, tp_size)
    cuts: dict[str, RoleCut | None] = dict.fromkeys(tensors)
    made: dict[tuple[int, int], RoleCut] = {}
    summed: set[tuple[int, int]] = set()
    for name, weight in weights.items():
        extent = extent_of(weight, tensors[name].shape, name)
        # Layers that a pattern stands for have one cut.
        key = id(weight), extent
        if key not in made:
            made[key] = _cut(weight, extent, name, tp_size)
        if key not in summed and _is_summed(name, weight, tensors[name].shape, weights):
            _check_summed(weight, extent, name)
            summed.add(key)
        cuts[name] = made[key] if tp_size > 1 else None
    return cuts


def degrees(roles: Roles) -> tuple[int, ...]:
    """The degrees that the roles allow: the common divisors of their numbers of groups."""
    common = math.gcd(*(len(weight.groups) for weight in roles.weights.values()))
    return tuple(n for n in range(1, common + 1) if common % n == 0)


class Names:
    """A checkpoint's names, or a model's, to be found by patterns."""

    def __init__(self, names: Iterable[str]) -> None:
        """Prepare for `names`."""
        self._names = set(names)
        self._firsts = {name.partition(".")[0] for name in self._names}

    def lacks(self, entries: Iterable[str]) -> tuple[str, ...]:
        """The entries that stand for nothing."""
        return tuple(entry for entry in entries if not any(self._of(entry)))

    def matches(self, entries: Mapping[str, _Value]) -> dict[str, _Value]:
        """Name → the entry that counts for it.

        Raises:
            InconsistentShardsError: an entry for nothing, or two patterns for one name.
        """
        if unknown := self.lacks(entries):
            raise InconsistentShardsError(
                f"the roles name {shown(sorted(unknown))}, which the checkpoint does not hold; "
                "derive them from this model"
            )
        owners: dict[str, tuple[str, _Value]] = {}
        # Names before patterns: a name's own entry takes precedence.
        for entry in sorted(entries, key=lambda e: "*" in e):
            for name in self._of(entry):
                owner = owners.setdefault(name, (entry, entries[entry]))[0]
                if owner != entry and "*" in owner:
                    raise InconsistentShardsError(
                        f"the roles say twice what {name} is, as {owner!r} and as {entry!r}; keep one of them"
                    )
        return {name: value for name, (_, value) in owners.items()}

    def _of(self, entry: str) -> Iterator[str]:
        first, _, rest = entry.partition(".")
        if first not in self._firsts and rest:
            # A checkpoint of the bare model: its names lack the name that the model has in the whole one.
            entry = rest
        if "*" not in entry:
            yield from {entry} & self._names
            return
        wanted = entry.split(".")
        for name in self._alike.get(_numberless(wanted), ()):
            if all(w in ("*", h) for w, h in zip(wanted, name.split("."), strict=True)):
                yield name

    @cached_property
    def _alike(self) -> dict[tuple[str, ...], list[str]]:
        """Names without their numbers → the names."""
        found: dict[tuple[str, ...], list[str]] = {}
        for name in self._names:
            found.setdefault(_numberless(name.split(".")), []).append(name)
        return found


def _numberless(segments: list[str]) -> tuple[str, ...]:
    return tuple("*" if s.isdecimal() else s for s in segments)


def _check_model(roles: Roles, model: Model, tensors: Mapping[str, LogicalTensor]) -> None:
    if roles.model_type != model.model_type:
        raise InconsistentShardsError(
            f"the roles are of a {roles.model_type!r} model, and the checkpoint is of a {model.model_type!r} "
            "one; derive them from this model"
        )
    scales = [n for n in tensors if n.rpartition(".")[2] in (*COMPANIONS, *SCALARS, SHAPE)]
    if scales or model.config.get("quantization_config"):
        raise UnsupportedSourceError(
            "the checkpoint is quantized, and roles do not say how scales are shared out; cut the "
            "checkpoint that it was made from, or dequantize it first"
        )


def _check_biases(
    cut_weights: Mapping[str, WeightRoles], once: Mapping[str, bool], tensors: Mapping[str, LogicalTensor]
) -> None:
    if both := sorted(set(cut_weights) & set(once)):
        raise CannotSplitError(
            f"the roles cut {shown(sorted(both))} and also say that it is added once, after the sum over "
            "ranks; only what every rank holds whole can be"
        )
    biases = [f"{name.removesuffix('.weight')}.bias" for name in cut_weights if name.endswith(".weight")]
    if open_ := [b for b in biases if b in tensors and b not in cut_weights and b not in once]:
        raise CannotSplitError(
            f"the roles cut the weights to which {shown(sorted(open_))} belong, and say nothing of these; "
            "a bias of rows is cut with them, under weights, and one that follows a sum over ranks is under "
            "bias_once"
        )


def extent_of(weight: WeightRoles, shape: tuple[int, ...], name: str) -> int:
    """The extent of the dimension that is cut.

    Args:
        weight: how the parameter is cut.
        shape: its dimensions.
        name: its name, for messages.

    Raises:
        CannotSplitError: there is none.
    """
    if weight.dim >= len(shape):
        raise CannotSplitError(
            f"the roles cut dimension {weight.dim} of {name}, which has shape {list(shape)}; derive "
            "them from this model"
        )
    return shape[weight.dim]


def _cut(weight: WeightRoles, extent: int, name: str, tp_size: int) -> RoleCut:
    size = len(weight.groups) // tp_size
    mine: list[list[Interval]] = [[] for _ in range(tp_size)]
    for begin, end, group in tiles(weight, extent, name):
        for rank in range(tp_size) if group == _EVERYBODY else (group // size,):
            mine[rank].append((begin, end))
    return RoleCut(dim=weight.dim, ranks=tuple(tuple(joined(intervals)) for intervals in mine))


def tiles(weight: WeightRoles, extent: int, name: str) -> Iterator[tuple[int, int, int]]:
    """The whole dimension, ascending: begin, end, and the group whose it is, or -1 for everybody's.

    Args:
        weight: how the parameter is cut.
        extent: of the dimension that is cut.
        name: the parameter's, for messages.

    Raises:
        CannotSplitError: an interval that is empty or outside, two that overlap, a group with none.
    """
    if not all(weight.groups):
        raise CannotSplitError(
            f"the roles give group {weight.groups.index(())} of {name} no indices, and a rank that held only "
            "this group could not run; leave the group out of every weight"
        )
    at = 0
    spans = sorted((b, e, group) for group, intervals in enumerate(weight.groups) for b, e in intervals)
    for begin, end, group in spans:
        if not 0 <= begin < end <= extent:
            raise CannotSplitError(
                f"the roles give group {group} of {name} the interval [{begin}, {end}), and dimension "
                f"{weight.dim} has indices 0 to {extent - 1}; derive them from this model"
            )
        if begin < at:
            raise CannotSplitError(
                f"the roles give index {begin} of {name}, dimension {weight.dim}, twice, the second time to "
                f"group {group}; an index has one owner, or none and is held by every rank"
            )
        if at < begin:
            yield at, begin, _EVERYBODY
        yield begin, end, group
        at = end
    if at < extent:
        yield at, extent, _EVERYBODY


def _is_summed(
    name: str, weight: WeightRoles, shape: tuple[int, ...], weights: Mapping[str, WeightRoles]
) -> bool:
    """Whether it is surely the inputs of a matrix that are cut: a bias of outputs would be cut as well."""
    module, _, param = name.rpartition(".")
    return param == "weight" and len(shape) == 2 and weight.dim == 1 and f"{module}.bias" not in weights


def _check_summed(weight: WeightRoles, extent: int, name: str) -> None:
    """Check that the ranks' products add up to the whole one.

    Raises:
        CannotSplitError: an input that every rank has would count more than once.
    """
    for begin, _, group in tiles(weight, extent, name):
        if group == _EVERYBODY:
            raise CannotSplitError(
                f"the roles leave index {begin} of the {extent} inputs of {name} to every rank, and the sum "
                "over ranks would count it several times; derive them from this model"
            )


def _check_degree(roles: Roles, weights: Mapping[str, WeightRoles], tp_size: int) -> None:
    for name, weight in weights.items():
        number = len(weight.groups)
        if not number:
            raise CannotSplitError(f"the roles give {name} no groups; leave out what every rank holds whole")
        if number % tp_size:
            raise CannotSplitError(
                f"the roles cut {name} in {number} groups, which cannot be shared out over "
                f"tp_size={tp_size}; degrees that work: {', '.join(map(str, degrees(roles)))}"
            )
    if not weights and tp_size > 1:
        raise CannotSplitError(f"the roles cut no tensor, so tp_size={tp_size} would give {tp_size} copies")
