"""State that the rules of all operations share: one traced forward, and one operation of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._pytree import tree_leaves

from planner.tracing.partition.feature_sets import FeatureSets, Ids, distinct_pairs, without_repeats
from planner.tracing.partition.storages import Axis, Storages

#: How a parameter is used with features: it computes them, sums over them, or is applied element by element.
Kind: TypeAlias = Literal["output", "input", "elementwise"]
#: Ids of an operation's results: one array, or one for each result.
Result: TypeAlias = Ids | list[Ids | None] | None


@dataclass(slots=True)
class Call:
    """One aten operation that has run.

    Attributes:
        func: the overload.
        packet: the operation without its overload.
        args, kwargs: its arguments as passed.
        given: its arguments by the schema's names, defaults included.
        inputs, outputs: the tensors among its arguments and results.
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
    """The call, with its arguments named.

    Args:
        func: the overload that ran.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: its result.
    """
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
    """State that the rules read and write.

    Attributes:
        sets: the features that must be on one rank.
        storages: ids and parameters by storage.
        module: returns the fqn of the module whose code runs.
        shapes: parameter → its shape.
        forced: parameter → mask of its outputs that every rank holds, although they could be cut.
        unsplit: weights whose inputs stay on one rank, although they are several sets during the trace.
        uses: (parameter, kind, dimension) → pairs of an index of that dimension and the id it is used with.
        constants: (module that uses it, dimension) → the same for tensors that are not parameters.
        outputs: parameter → dimensions of its outputs, and id of its first output feature.
        inputs: (parameter, dimensions) → ids of the features that it sums over, one per index.
        row: parameters whose inputs are several sets.
        blocked: parameters whose inputs were several features and are one set.
        held: features of one set that includes all outputs of their weights, as a router's are. Every rank
            holds them, and what is computed from all of them needs no ids.
        biases: parameters that are added to sums which need an all-reduce first.
        unknown: operations without a rule → how often they ran; they unite all ids of their inputs.
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
        """Records that a parameter is used with features.

        Args:
            name: fqn of the parameter.
            kind: how it is used with them.
            axis: dimension of the parameter → its indices along the first dimension of `ids`.
            ids: the features; the first dimension runs along the axis.
        """
        for dim, coordinates in axis.items():
            self.uses.setdefault((name, kind, dim), []).append(_pairs(coordinates, ids))

    def note_elementwise(self, tensor: torch.Tensor, result: Ids) -> None:
        """Records the ids of a result that are combined, element by element, with a tensor that has none."""
        sources = [(source.name, source.axes_of(tensor)) for source in self.storages.sources(tensor)]
        for dim in range(tensor.dim()):
            if tensor.shape[dim] < 2:
                continue
            along = np.moveaxis(result, dim - tensor.dim(), 0)
            if along.shape[0] != tensor.shape[dim]:
                continue
            axes_of_sources = [(name, axes[dim]) for name, axes in sources if axes[dim]]
            for name, axis in axes_of_sources:
                self.note(name, "elementwise", axis, along)
            if not axes_of_sources:
                key = (self.module(), dim - result.ndim)
                self.constants.setdefault(key, []).append(_pairs(np.arange(len(along)), along))

    def together(self, ids: Ids) -> Ids | None:
        """Ids of a result computed from all of `ids`; None when every rank can hold the weights."""
        labels = self.sets.labels()
        combined = np.unique(labels[ids])
        combined = combined[combined > 0]
        if len(combined) != 1:
            return ids
        for name, (dims, first) in self.outputs.items():
            extent = int(np.prod([self.shapes[name][dim] for dim in dims]))
            inside = labels[first : first + extent] == combined[0]
            if inside.any() and not inside.all():
                return ids
        self.held.append(int(combined[0]))
        return None

    def blend(self, call: Call) -> Result:
        """Unites all ids of an operation's inputs, and gives its results ids of that set."""
        of_inputs = [ids.ravel() for ids in map(self.ids, call.inputs) if ids is not None]
        if not of_inputs:
            return None
        united = self.sets.unite_all(np.concatenate(of_inputs))
        return [np.full(tuple(out.shape), united) for out in call.outputs]


def _pairs(coordinates: Ids, ids: Ids) -> Ids:
    spread = np.broadcast_to(coordinates.reshape(-1, *(1,) * (ids.ndim - 1)), ids.shape)
    return distinct_pairs(*without_repeats(spread, ids))
