"""Lifetimes of storages in a trace, and the live bytes of activations at each operation."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

BEFORE: Final = -1


@dataclass(slots=True)
class Storage:
    """Memory that an operation allocated.

    Attributes:
        num_bytes: its size.
        creator: fqn of the module whose code made it.
        born: event that allocated it; BEFORE when it existed at the start.
        died: last event during which it was alive; None while it is alive.
        reference: weak reference that notices its release.
    """

    num_bytes: int
    creator: str
    born: int
    died: int | None = None
    reference: Any = field(default=None, repr=False)


class StorageLedger:
    """Every storage of a trace. Python's reference counting frees storages, as in eager mode."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._alive: dict[int, Storage] = {}
        self.storages: list[Storage] = []
        self._ignored: set[int] = set()

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Excludes the storages of `tensors` (weights) from the ledger."""
        self._ignored.update(t.untyped_storage()._cdata for t in tensors)

    def find(self, tensor: torch.Tensor) -> Storage | None:
        """The storage of a tensor; None for a weight or a tensor that was never added."""
        return self._alive.get(tensor.untyped_storage()._cdata)

    def add(self, tensor: torch.Tensor, creator: str, born: int) -> Storage | None:
        """The tensor's storage, which is added when it is new.

        Args:
            tensor: the tensor.
            creator: fqn of the module whose code created it.
            born: event that allocated it, or BEFORE.

        Returns:
            The storage; None for a weight.
        """
        memory = tensor.untyped_storage()
        address = memory._cdata
        if address in self._ignored:
            return None
        existing = self._alive.get(address)
        if existing is not None:
            return existing
        storage = Storage(num_bytes=memory.nbytes(), creator=creator, born=born)
        storage.reference = weakref.ref(memory, lambda _: self._free(address))
        self._alive[address] = storage
        self.storages.append(storage)
        return storage

    def _free(self, address: int) -> None:
        storage = self._alive.pop(address, None)
        if storage is not None:
            storage.died = self._clock() - 1

    def restart(self) -> None:
        """Starts a new phase: removes freed storages; live ones count as allocated BEFORE it."""
        self.storages = list(self._alive.values())
        for storage in self.storages:
            storage.born = BEFORE


def live_bytes(
    storages: Iterable[Storage],
    num_events: int,
    *,
    cached: dict[int, int],
    replaced: dict[int, int],
) -> npt.NDArray[np.int64]:
    """Bytes of activations alive at each event.

    Args:
        storages: all storages of the phase.
        num_events: number of events of the phase.
        cached: by `id(storage)`, bytes that belong to the cache after the phase; these do not count.
        replaced: by `id(storage)`, for a storage that was cache before the phase, the event at which its
            successor is allocated (`num_events` when it has none); it counts from then on.

    Returns:
        Live bytes of shape (num_events,).
    """
    change = np.zeros(num_events + 1, np.int64)
    for storage in storages:
        counted = storage.num_bytes - cached.get(id(storage), 0)
        start = max(storage.born, 0)
        if id(storage) in replaced:
            counted, start = storage.num_bytes, replaced[id(storage)]
        end = num_events if storage.died is None else storage.died + 1
        if end > start and counted:
            change[start] += counted
            change[min(end, num_events)] -= counted
    alive: npt.NDArray[np.int64] = np.cumsum(change)[:num_events]
    return alive
