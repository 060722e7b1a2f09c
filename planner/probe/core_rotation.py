"""One thread's walk over the processor's cores, because they are not alike.

On a rented machine a core is often one of two hardware threads, and the other one works for somebody else: it
is then up to 1.8 times slower, for minutes. Which core a process gets is luck, and with it everything that
Python does there. What is to hold for the machine is therefore measured on many of its cores.
Seen on a host of two H200: a loop of Python took 10 ms on a third of 32 cores and 14 to 18 ms on the others,
and launches of kernels 14 µs and 18 to 23 µs each.
"""

import os
import random
from itertools import cycle, islice
from pathlib import Path
from typing import Final

#: Where Linux lists the large cores of a processor that has small ones too; programs get those first.
_LARGE_CORES: Final = Path("/sys/devices/cpu_core/cpus")


class CoreRotation:
    """Moves the calling thread to the next core whenever it is called, round and round.

    The thread stays there of its own accord, for it is free to go at once: tied to the core it would wait
    whenever another thread of its process is there, as those of OpenMP are that spin. Even so it waits a
    little: only what one thread does should be measured this way. Where threads cannot be moved, nothing is.

    Args:
        rank: of this process among those that walk at the same pace; they keep off each other's cores.
        num_ranks: how many they are.

    Attributes:
        num_cores: after so many calls it is on the same core again.
    """

    def __init__(self, rank: int = 0, num_ranks: int = 1) -> None:
        self._allowed = _allowed()
        cores = sorted(self._allowed & _large(_LARGE_CORES) or self._allowed)
        random.Random(len(cores)).shuffle(cores)
        self.num_cores = max(1, len(cores))
        self._next = islice(cycle(cores), rank * len(cores) // num_ranks, None)

    def __call__(self) -> None:
        if self.num_cores > 1:
            _restrict({next(self._next)})
            _restrict(self._allowed)


def _allowed() -> set[int]:
    """The cores that this thread may use; none where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _restrict(cores: set[int]) -> None:
    """To these cores; where one has been taken away since, nothing changes."""
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return


def _large(path: Path) -> set[int]:
    """Cores of a list like `0-7,16`; none where there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return set()
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
