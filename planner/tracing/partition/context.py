"""What the rules of all operations share: one traced forward, and one operation of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._pytree import tree_leaves

from planner.tracing.partition.feature_sets import FeatureSets, Ids, distinct_pairs, without_repeats
from planner.tracing.partition.storages import Axis, Storages

#: How a parameter meets features: it makes them, it sums over them, or it goes with each of them.
Kind: TypeAlias = Literal["output", "input", "elementwise"]
#: Ids that an operation's results get: one array, or one for each result.
Result: TypeAlias = Ids | list[Ids | None] | None


@dataclass(slots=True)
class Call:
    """One aten operation that has run.

    Attributes:
        packet: the operation, overloads together.
        given: its arguments by the schema's names, defaults included.
        inputs, outputs: the tensors among arguments and results.
    """

    func: Any
    packet: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: dict[str, Any]
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]

    @property
    def output(self) -> torch.Tensor:
        """The only, or first, result."""
        return self.outputs[0]

    @property
    def is_in_place(self) -> bool:
        """Whether it writes into its first argument."""
        return bool(self.func._schema.is_mutable)


def call_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Call:
    """The call with its arguments named."""
    given: dict[str, Any] = {}
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
        given[argument.name] = value
    return Call(
        func=func,
        packet=func._overloadpacket,
        args=args,
        kwargs=kwargs,
        given=given,
        inputs=[leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)],
        outputs=[leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)],
    )


@dataclass(slots=True)
class Context:
    """Everything that the rules read and write.

    Attributes:
        sets: which features belong together.
        storages: ids and parameters by storage.
        forced: parameter → which of its outputs every rank shall hold, although they could be cut.
        unsplit: weights whose inputs shall stay together, although they are several sets by then.
        module: fqn of the module whose code runs.
        uses: (parameter, kind, dimension) → pairs of an index there and the id it meets.
        constants: the same of tensors that are no parameters, by the module that uses them.
        outputs: parameter → id of its first output feature.
        inputs: parameter and dimensions → ids of the features it sums over, one per index.
        row: parameters whose inputs are several sets.
        blocked: parameters whose inputs were several features and are one set.
        held: features that must stay together and are all that their weights make, as a router's are. Every
            rank holds them, and what is computed from all of them needs no ids.
        biases: added to sums that need an all-reduce first.
        unknown: operations without a rule; they unite all they touch.
    """

    sets: FeatureSets
    storages: Storages
    module: Callable[[], str]
    shapes: dict[str, tuple[int, ...]]
    forced: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    unsplit: frozenset[str] = frozenset()
    uses: dict[tuple[str, Kind, int], list[Ids]] = field(default_factory=dict)
    constants: dict[tuple[str, int], list[Ids]] = field(default_factory=dict)
    outputs: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    inputs: dict[tuple[str, tuple[int, ...]], Ids] = field(default_factory=dict)
    row: set[str] = field(default_factory=set)
    blocked: set[str] = field(default_factory=set)
    held: list[int] = field(default_factory=list)
    biases: set[str] = field(default_factory=set)
    unknown: dict[str, int] = field(default_factory=dict)

    def ids(self, tensor: torch.Tensor | None) -> Ids | None:
        """The ids of a tensor's elements, or None."""
        return None if tensor is None else self.storages.ids(tensor)

    def note(self, name: str, kind: Kind, axis: Axis, ids: Ids) -> None:
        """Remembers that a parameter meets `ids` along an axis; their first dimension runs along it."""
        for dim, coordinates in axis.items():
            self.uses.setdefault((name, kind, dim), []).append(_pairs(coordinates, ids))

    def note_elementwise(self, tensor: torch.Tensor, result: Ids) -> None:
        """Remembers what a tensor that every rank has whole meets, element by element, in a result."""
        sources = [(source.name, source.axes_of(tensor)) for source in self.storages.sources(tensor)]
        for dim in range(tensor.dim()):
            if tensor.shape[dim] < 2:
                continue
            along = np.moveaxis(result, dim - tensor.dim(), 0)
            if along.shape[0] != tensor.shape[dim]:
                continue
            known = [(name, axes[dim]) for name, axes in sources if axes[dim]]
            for name, axis in known:
                self.note(name, "elementwise", axis, along)
            if not known:
                key = (self.module(), dim - result.ndim)
                self.constants.setdefault(key, []).append(_pairs(np.arange(len(along)), along))

    def together(self, ids: Ids) -> Ids | None:
        """Ids of a result that needs all of `ids`; None when every rank can as well hold what made them."""
        labels = self.sets.labels()
        met = np.unique(labels[ids])
        met = met[met > 0]
        if len(met) != 1:
            return ids
        for name, (dims, first) in self.outputs.items():
            extent = int(np.prod([self.shapes[name][dim] for dim in dims]))
            inside = labels[first : first + extent] == met[0]
            if inside.any() and not inside.all():
                return ids
        self.held.append(int(met[0]))
        return None

    def blend(self, call: Call) -> Result:
        """One set of everything that goes into an operation, on all that comes out."""
        found = [ids.ravel() for ids in map(self.ids, call.inputs) if ids is not None]
        if not found:
            return None
        one = self.sets.unite_all(np.concatenate(found))
        return [np.full(tuple(out.shape), one) for out in call.outputs]


def _pairs(coordinates: Ids, ids: Ids) -> Ids:
    spread = np.broadcast_to(coordinates.reshape(-1, *(1,) * (ids.ndim - 1)), ids.shape)
    return distinct_pairs(*without_repeats(spread, ids))
