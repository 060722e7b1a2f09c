"""Core rotation: moves a thread over the processor's cores, because cores differ in speed.

On a rented machine a virtual core is often one hardware thread of a physical core whose other thread belongs
to another tenant; it can then be up to 1.8 times slower for minutes. The operating system chooses the core of
a process, and with it the speed of all its Python code. A measurement that describes the whole machine is
therefore taken on many of its cores.

Measured on a host with two H200: a Python loop took 10 ms on a third of 32 cores and 14 to 18 ms on the
others; a kernel launch took 14 µs and 18 to 23 µs.
"""

import os
import random
from itertools import cycle, islice
from pathlib import Path
from typing import Final

#: Where Linux lists the performance cores of a hybrid processor; the scheduler prefers these cores.
_LARGE_CORES: Final = Path("/sys/devices/cpu_core/cpus")


class CoreRotation:
    """Moves the calling thread to the next core at each call, cyclically.

    The affinity is restored right after the move: the scheduler usually leaves the thread on its core, and a
    thread pinned there would wait whenever another thread of the process runs on that core, such as a
    spinning OpenMP thread. Some waiting remains, so only single-threaded work should be measured this way.
    Where the system does not support setting the affinity, a call does nothing.

    Args:
        rank: this process among those that rotate in step; different ranks start on different cores.
        num_ranks: number of these processes.

    Attributes:
        num_cores: length of the cycle: after this many calls the thread is on the same core again.
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
    """The cores that this thread may use; empty where the system does not report them."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _restrict(cores: set[int]) -> None:
    """Set the thread's affinity to these cores; ignored when they are no longer available."""
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return


def _large(path: Path) -> set[int]:
    """Cores in a list such as `0-7,16`; empty where the file does not exist."""
    try:
        text = path.read_text().strip()
    except OSError:
        return set()
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores
