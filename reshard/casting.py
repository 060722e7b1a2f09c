"""Casts between floating dtypes, by torch."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from .dtypes import dtype


def is_floating(name: str) -> bool:
    """Whether the dtype called `name` is one that `--dtype` changes: 16 bits or more, and floating."""
    kind: torch.dtype = getattr(torch, name)
    return kind.is_floating_point and dtype(name).itemsize_bytes >= 2


def cast(given: NDArray[np.uint8], made: NDArray[np.uint8], source: str, target: str) -> bool:
    """Convert elements; see `reshard.stream.Cast`. Rounds to nearest even, as `Tensor.to` does."""
    if given.size == 0:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read-only buffers are not written to
        before = torch.frombuffer(given, dtype=getattr(torch, source))
        after = torch.frombuffer(made, dtype=getattr(torch, target))
    after.copy_(before)
    if torch.finfo(after.dtype).max >= torch.finfo(before.dtype).max:
        return False
    return bool((torch.isinf(after).sum() != torch.isinf(before).sum()).item())
