"""How much memory and how many threads a run takes. Pure."""

from typing import Final

import msgspec

from .errors import MemoryBudgetError

_SMALLEST_STRIP_BYTES: Final = 64 << 10


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How much memory and how many threads a run may use.

    Attributes:
        buffer_bytes: for all buffers together.
        jobs: threads.
    """

    buffer_bytes: int
    jobs: int

    @property
    def strip_bytes(self) -> int:
        """The longest strip: a worker holds one as read, one reordered and one cast."""
        return self.buffer_bytes // self.jobs // 3


def fit_budget(memory_bytes: int, jobs: int, used_bytes: int) -> Budget:
    """The buffers that fit into `memory_bytes` when the process itself already uses `used_bytes`.

    Args:
        memory_bytes: anonymous memory of the whole process.
        jobs: threads asked for; fewer are given where the buffers would be too small.
        used_bytes: what the process takes beside the buffers.

    Raises:
        MemoryBudgetError: not even the smallest buffers do.
    """
    free = memory_bytes - used_bytes
    smallest = 3 * _SMALLEST_STRIP_BYTES
    if free < smallest:
        raise MemoryBudgetError(
            f"`memory_bytes` of {memory_bytes >> 20} MiB is too little: the process itself uses "
            f"{used_bytes >> 20} MiB; give at least {(used_bytes + smallest >> 20) + 16} MiB"
        )
    return Budget(buffer_bytes=free, jobs=max(1, min(jobs, free // smallest)))
