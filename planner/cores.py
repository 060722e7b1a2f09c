"""One thread's walk over the processor's cores, because they are not alike.

On a rented machine a core is often one of two hardware threads, and the other one works for somebody else: it
is then up to 1.8 times slower, for minutes. Which core a process gets is luck, and with it everything that
Python does there. What is to hold for the machine is therefore measured on many of its cores.
Seen on two hosts with H100 and H200 GPUs: a loop of Python took 9.7 ms on a third of 32 cores and 14 to 18 ms
on the others, and 300 launches of kernels 14 µs and 18 to 23 µs each.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Final

#: Where Linux lists the large cores of a processor that has small ones too; programs get those first.
_LARGE_CORES: Final = Path("/sys/devices/cpu_core/cpus")


@contextmanager
def every_core(rank: int = 0, num_ranks: int = 1) -> Iterator[Callable[[], None]]:
    """Yields a function that moves the calling thread to the next core; afterwards the thread is free again.

    Threads that are started meanwhile stay on the core of their start, so a process should have its own
    already. Where threads cannot be moved, nothing is.

    Args:
        rank: of this process among those that walk at the same pace; they keep off each other's cores.
        num_ranks: how many they are.
    """
    allowed = _allowed()
    cores = sorted(allowed & _large(_LARGE_CORES) or allowed)
    random.Random(len(cores)).shuffle(cores)
    walk = islice(cycle(cores), rank * len(cores) // num_ranks, None)

    def move() -> None:
        if len(cores) > 1:
            _stay_on({next(walk)})

    try:
        yield move
    finally:
        _stay_on(allowed)


def _allowed() -> set[int]:
    """The cores that this thread may use; none where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _stay_on(cores: set[int]) -> None:
    """A core may have been taken away since; then the thread stays where it is."""
    if not cores:
        return
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
