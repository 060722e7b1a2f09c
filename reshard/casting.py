"""Casts between floating dtypes, by torch."""

import warnings
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

#: Elements cast at once: intermediate results stay in the cache, and for fewer torch starts no threads
#: beside the caller's own.
_BLOCK: Final = 32_000
_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def cast(given: NDArray[np.uint8], made: NDArray[np.uint8], source: str, target: str) -> bool:
    """Convert elements; see `reshard.stream.Cast`. Rounds to nearest even, as `Tensor.to` does.

    Args:
        given: the elements as bytes.
        made: as many elements as bytes; filled.
        source: torch's name of the dtype in `given`.
        target: torch's name of the dtype in `made`.
    """
    if given.size == 0:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read-only buffers are not written to
        before = torch.frombuffer(given, dtype=getattr(torch, source))
        after = torch.frombuffer(made, dtype=getattr(torch, target))
    narrows = torch.finfo(after.dtype).max < torch.finfo(before.dtype).max
    overflows = False
    for begin in range(0, len(before), _BLOCK):
        few, cast_few = before[begin : begin + _BLOCK], after[begin : begin + _BLOCK]
        cast_few.copy_(few)
        if narrows and not overflows and _has_special(cast_few):
            overflows = bool((torch.isinf(cast_few).sum() != torch.isinf(few).sum()).item())
    return overflows


def _has_special(values: torch.Tensor) -> bool:
    """Whether infinities or NaNs are among them; many times as fast as `torch.isinf`."""
    kind = _BITS[values.element_size()]
    infinity = torch.tensor(torch.inf, dtype=values.dtype).view(kind).item()
    bits: NDArray[np.integer[Any]] = values.view(kind).numpy()
    # Without their signs, floats are ordered as integers are.
    return bool((bits & np.iinfo(bits.dtype).max).max() >= infinity)
