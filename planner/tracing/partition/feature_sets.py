"""Union-find over feature ids, for whole arrays at a time.

An id represents one output feature of one weight. Id 0 represents everything that every rank has.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]
EVERYWHERE: Final = 0
_HALF: Final = 32


class FeatureSets:
    """Sets of features that must be on one rank.

    Attributes:
        shared: label → members of sets that one operation united with several others at once, as one head of
            keys that many heads of queries use. If every rank held them, the others could be separate sets.
    """

    def __init__(self) -> None:
        self._size = 1
        self._labels: Ids = np.zeros(1, dtype=np.int64)
        self._pending: list[Ids] = []
        self.shared: dict[int, Ids] = {}

    def fresh(self, count: int) -> int:
        """The first of `count` new, consecutive ids."""
        first = self._size
        self._size += count
        return first

    def unite(self, left: Ids, right: Ids) -> None:
        """Unites the ids at equal positions of two arrays of one shape; zeros are united with nothing."""
        pairs = _joining_pairs(*without_repeats(left, right))
        if len(pairs):
            self._pending.append(pairs)

    def meet(self, left: Ids, right: Ids) -> Ids:
        """Unites the ids of two operands for each element of the result of an operation.

        Returns:
            The ids of the result, in the shape that both broadcast to.
        """
        left, right = np.broadcast_arrays(left, right)
        shape = left.shape
        left, right = without_repeats(left, right)
        pairs = _joining_pairs(left, right)
        if len(pairs):
            self._note_shared(pairs)
            self._pending.append(pairs)
        return np.broadcast_to(np.where(left > 0, left, right), shape)

    def unite_all(self, ids: Ids) -> int:
        """Unites all of `ids`; returns a member of the set, or 0 when all are 0."""
        distinct = np.unique(ids)
        distinct = distinct[distinct > 0]
        if not len(distinct):
            return EVERYWHERE
        if len(distinct) > 1:
            self._pending.append(np.stack([np.full(len(distinct) - 1, distinct[0]), distinct[1:]], axis=1))
        return int(distinct[0])

    def collapse(self, ids: Ids, dims: Sequence[int]) -> Ids:
        """Unites the ids along `dims`, as a sum over them does; the dimensions are kept with extent 1."""
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
        """The label of every id: the smallest member of its set."""
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
    """The arrays, which have one shape, with extent 1 along dimensions in which all of them are constant."""
    reduced = list(arrays)
    for axis, extent in enumerate(reduced[0].shape):
        if extent > 1 and all(_repeats(array, axis) for array in reduced):
            reduced = [_slice(array, axis, 0) for array in reduced]
    return reduced


def _repeats(array: Ids, axis: int) -> bool:
    first = _slice(array, axis, 0)
    # Where any slice differs from the first, the last one nearly always does, so it is compared before all.
    return array.strides[axis] == 0 or (
        np.array_equal(first, _slice(array, axis, -1)) and bool((array == first).all())
    )


def _slice(array: Ids, axis: int, at: int) -> Ids:
    return array[(slice(None),) * axis + (slice(at, at + 1 or None),)]


def distinct_pairs(firsts: Ids, seconds: Ids) -> Ids:
    """The distinct pairs of elements of two arrays of one shape, one row for each."""
    # Each pair is packed into one number, which sorts much faster than rows.
    packed = np.unique((firsts.ravel() << _HALF) | seconds.ravel())
    return np.stack([packed >> _HALF, packed & ((1 << _HALF) - 1)], axis=1)


def _without(shape: tuple[int, ...], axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(extent for dim, extent in enumerate(shape) if dim not in axes)


def _joining_pairs(left: Ids, right: Ids) -> Ids:
    differ = (left > 0) & (right > 0) & (left != right)
    if not differ.any():
        return np.empty((0, 2), dtype=np.int64)
    return distinct_pairs(left[differ], right[differ])


def _joined(size: int, pairs: Ids) -> Ids:
    """For each of `size` labels, the smallest label that `pairs` connect it with."""
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
