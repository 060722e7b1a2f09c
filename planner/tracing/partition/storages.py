"""Facts about every storage of a trace: the ids of its elements, and the parameters that they come from.

Facts belong to storages, not tensors, and have the layout of the storage. So a view has the facts of its
base, and an in-place operation changes them for every view, and views need no rules.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from planner.tracing.partition.feature_sets import Ids

#: Dimension of a parameter → its indices along one dimension of a tensor. Empty when unknown.
Axis: TypeAlias = Mapping[int, Ids]


@dataclass(frozen=True, slots=True)
class AxisSource:
    """A parameter that a storage holds, unchanged or changed element by element.

    Attributes:
        name: fqn of the parameter.
        shape, strides, offset: of the tensor that `axes` describes.
        axes: for each dimension of that tensor, its indices in the parameter.
        is_itself: whether the storage is the parameter's own.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    axes: tuple[Axis, ...]
    is_itself: bool = False

    def axes_of(self, tensor: torch.Tensor) -> tuple[Axis, ...]:
        """For each dimension of a view of the storage, its indices in the parameter."""
        start = tensor.storage_offset() - self.offset
        return tuple(
            self._axis(np.arange(extent) * int(stride) + int(start))
            for extent, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )

    def _axis(self, positions: Ids) -> Axis:
        axis: dict[int, Ids] = {}
        steps = sorted(
            ((stride, dim) for dim, stride in enumerate(self.strides) if stride > 0 and self.shape[dim] > 1),
            reverse=True,
        )
        rest = positions
        for stride, dim in steps:
            index, rest = rest // stride, rest % stride
            if len(index) < 2 or (index == index[0]).all():
                continue
            if index.min() < 0 or index.max() >= self.shape[dim] or not self.axes[dim]:
                return {}
            axis |= {of: coordinates[index] for of, coordinates in self.axes[dim].items()}
        return axis


@dataclass(slots=True)
class Facts:
    """Facts about one storage.

    Attributes:
        itemsize: bytes of an element that `ids` has an entry for.
        ids: one per element; None when every rank has all elements.
        sources: parameters that it comes from.
        is_data: whether it depends on an activation.
        summed: row-parallel parameters whose partial sums it holds.
        known: the values themselves, for small constants.
        reference: weak reference that notices its release.
    """

    itemsize: int
    ids: Ids | None = None
    sources: tuple[AxisSource, ...] = ()
    is_data: bool = False
    summed: frozenset[str] = frozenset()
    known: torch.Tensor | None = None
    reference: Any = None


class Storages:
    """Facts by storage; they are removed when the storage is freed.

    Attributes:
        aliases: other name of a shared parameter → its first name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._facts: dict[int, Facts] = {}
        self.aliases: dict[str, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            facts = self.facts(parameter)
            if facts.sources:
                self.aliases[name] = facts.sources[0].name
                continue
            axes = tuple({dim: np.arange(extent)} for dim, extent in enumerate(parameter.shape))
            facts.sources = (_source(name, parameter, axes, is_itself=True),)

    def facts(self, tensor: torch.Tensor) -> Facts:
        """Facts of the tensor's storage; new, empty ones when there are none."""
        memory = tensor.untyped_storage()
        address = memory._cdata
        facts = self._facts.get(address)
        if facts is None:
            facts = self._facts[address] = Facts(itemsize=tensor.itemsize)
            facts.reference = weakref.ref(memory, lambda _: self._facts.pop(address, None))
        return facts

    def find(self, tensor: torch.Tensor) -> Facts | None:
        """Facts of the tensor's storage, or None."""
        return self._facts.get(tensor.untyped_storage()._cdata)

    def ids(self, tensor: torch.Tensor) -> Ids | None:
        """The ids of a tensor's elements; None when every rank has all elements."""
        facts = self.find(tensor)
        if facts is None or facts.ids is None or not tensor.numel():
            return None
        ids = _view(facts, tensor)
        return ids if ids.any() else None

    def set_ids(self, tensor: torch.Tensor, ids: Ids | None) -> None:
        """Overwrites the ids of a tensor's elements."""
        facts = self.facts(tensor)
        if facts.ids is None:
            if ids is None or not ids.any():
                return
            facts.itemsize = tensor.itemsize
            facts.ids = np.zeros(tensor.untyped_storage().nbytes() // tensor.itemsize, dtype=np.int64)
        if tensor.numel():
            _view(facts, tensor)[...] = 0 if ids is None else np.broadcast_to(ids, tensor.shape)

    def sources(self, tensor: torch.Tensor) -> tuple[AxisSource, ...]:
        """The parameters that a tensor comes from; none for one that depends on an activation."""
        facts = self.find(tensor)
        return () if facts is None or facts.is_data else facts.sources

    def itself(self, tensor: torch.Tensor) -> AxisSource | None:
        """The parameter that a tensor is a view of."""
        return next((source for source in self.sources(tensor) if source.is_itself), None)

    def is_data(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor depends on an activation."""
        facts = self.find(tensor)
        return facts is not None and facts.is_data

    def derive(self, tensor: torch.Tensor, name: str, axes: tuple[Axis, ...]) -> None:
        """Records that a new tensor holds elements of a parameter.

        Args:
            tensor: the new tensor.
            name: fqn of the parameter.
            axes: for each dimension of the tensor, its indices in the parameter.
        """
        facts = self.facts(tensor)
        facts.sources = (*facts.sources, _source(name, tensor, axes))


def _source(name: str, tensor: torch.Tensor, axes: tuple[Axis, ...], is_itself: bool = False) -> AxisSource:
    return AxisSource(
        name=name,
        shape=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
        offset=int(tensor.storage_offset()),
        axes=axes,
        is_itself=is_itself,
    )


def _view(facts: Facts, tensor: torch.Tensor) -> Ids:
    """A writable view of the ids of a tensor's elements. A complex element has the id of its real part."""
    assert facts.ids is not None
    size, unit = tensor.itemsize, facts.itemsize
    strides = [stride * size // unit for stride in tensor.stride()]
    start = facts.ids[tensor.storage_offset() * size // unit :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, [s * start.itemsize for s in strides])
