"""Union-find over feature ids, on whole arrays at a time.

An id stands for one feature of one weight's output. Id 0 stands for all that every rank computes alike.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]
EVERYWHERE: Final = 0
_HALF: Final = 32


class FeatureSets:
    """Which features must live on one rank.

    Attributes:
        shared: members of sets that one operation joined with several others at once, by a member: one head
            of keys that many heads of queries use. If every rank held them, the others could part.
    """

    def __init__(self) -> None:
        self._size = 1
        self._labels: Ids = np.zeros(1, dtype=np.int64)
        self._pending: list[Ids] = []
        self.shared: dict[int, Ids] = {}

    def fresh(self, count: int) -> int:
        """The first of `count` new consecutive ids."""
        first = self._size
        self._size += count
        return first

    def unite(self, some: Ids, others: Ids) -> None:
        """Puts the ids at equal places of two arrays of one shape into one set; zeros join nothing."""
        pairs = _joining_pairs(*without_repeats(some, others))
        if len(pairs):
            self._pending.append(pairs)

    def meet(self, some: Ids, others: Ids) -> Ids:
        """Unites what two operands of one operation bring to each element of its result.

        Returns:
            The ids of the result, in the shape both broadcast to.
        """
        some, others = np.broadcast_arrays(some, others)
        shape = some.shape
        some, others = without_repeats(some, others)
        pairs = _joining_pairs(some, others)
        if len(pairs):
            self._note_shared(pairs)
            self._pending.append(pairs)
        return np.broadcast_to(np.where(some > 0, some, others), shape)

    def unite_all(self, ids: Ids) -> int:
        """One set of everything in `ids`; a member of it, or 0."""
        found = np.unique(ids)
        found = found[found > 0]
        if not len(found):
            return EVERYWHERE
        if len(found) > 1:
            self._pending.append(np.stack([np.full(len(found) - 1, found[0]), found[1:]], axis=1))
        return int(found[0])

    def collapse(self, ids: Ids, dims: Sequence[int]) -> Ids:
        """Unites along `dims`, as a sum over them does; they stay, with extent 1."""
        axes = sorted({dim % ids.ndim for dim in dims}) if ids.ndim else []
        if not axes:
            return ids
        first = np.moveaxis(ids, axes, range(len(axes))).reshape(-1, *_without(ids.shape, axes))
        if first.shape[0] == 0:
            return np.zeros([1 if d in axes else n for d, n in enumerate(ids.shape)], dtype=np.int64)
        chosen = first.max(axis=0)
        self.unite(first, np.broadcast_to(chosen, first.shape))
        return np.asarray(np.expand_dims(chosen, tuple(axes)))

    def labels(self) -> Ids:
        """The set of every id, named by its smallest member."""
        if self._size > len(self._labels):
            new = np.arange(len(self._labels), self._size)
            self._labels = np.concatenate([self._labels, new])
        if self._pending:
            joins = self._labels[np.concatenate(self._pending)]
            self._pending = []
            self._labels = _joined(self._size, joins)[self._labels]
        return self._labels

    def _note_shared(self, pairs: Ids) -> None:
        labels = self.labels()
        between = labels[pairs]
        between = between[between[:, 0] != between[:, 1]]
        between = distinct_pairs(between[:, 0], between[:, 1])
        for side in (0, 1):
            sets, counts = np.unique(between[:, side], return_counts=True)
            _, other_counts = np.unique(between[:, 1 - side], return_counts=True)
            if len(sets) and counts.min() >= 2 and other_counts.max() < counts.max():
                for label in sets:
                    self.shared[int(label)] = np.flatnonzero(labels == label)


def without_repeats(*arrays: Ids) -> list[Ids]:
    """The arrays, of one shape, with extent 1 along dimensions in which all of them repeat themselves."""
    found = list(arrays)
    for axis, extent in enumerate(found[0].shape):
        if extent > 1 and all(_repeats(array, axis) for array in found):
            found = [_slice(array, axis, 0) for array in found]
    return found


def _repeats(array: Ids, axis: int) -> bool:
    first = _slice(array, axis, 0)
    # The last one differs where any does, nearly always: the rest is then not looked at.
    return array.strides[axis] == 0 or (
        np.array_equal(first, _slice(array, axis, -1)) and bool((array == first).all())
    )


def _slice(array: Ids, axis: int, at: int) -> Ids:
    return array[(slice(None),) * axis + (slice(at, at + 1 or None),)]


def distinct_pairs(firsts: Ids, seconds: Ids) -> Ids:
    """The different pairs of two arrays of one shape, a row for each."""
    # As one number each: that sorts many times as fast as rows do.
    packed = np.unique((firsts.ravel() << _HALF) | seconds.ravel())
    return np.stack([packed >> _HALF, packed & ((1 << _HALF) - 1)], axis=1)


def _without(shape: tuple[int, ...], axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(extent for dim, extent in enumerate(shape) if dim not in axes)


def _joining_pairs(some: Ids, others: Ids) -> Ids:
    differ = (some > 0) & (others > 0) & (some != others)
    if not differ.any():
        return np.empty((0, 2), dtype=np.int64)
    return distinct_pairs(some[differ], others[differ])


def _joined(size: int, pairs: Ids) -> Ids:
    """For each of `size` labels the smallest that `pairs` connect it with."""
    smallest = np.arange(size)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    while len(pairs):
        np.minimum.at(smallest, pairs.max(axis=1), pairs.min(axis=1))
        while True:
            further = smallest[smallest]
            if np.array_equal(further, smallest):
                break
            smallest = further
        pairs = smallest[pairs]
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        pairs = distinct_pairs(pairs[:, 0], pairs[:, 1])
    return smallest
