"""What a cache object holds, whatever its class: its tensors, found by walking it."""

from typing import Any

import msgspec
import torch
from torch import nn


class CachedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that a cache keeps.

    Attributes:
        tensor: it.
        window: tokens after which its layer stops growing, or None.
    """

    tensor: torch.Tensor
    window: int | None


def cached_tensors(cache: Any) -> list[CachedTensor]:
    """The tensors of keys, values and states in `cache`; counters and empty tensors are left out."""
    found: list[CachedTensor] = []
    seen: set[int] = set()

    def walk(value: Any, window: int | None) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.dim() > 1 and value.numel():
                found.append(CachedTensor(tensor=value, window=window))
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item, window)
        elif isinstance(value, dict):
            for item in value.values():
                walk(item, window)
        elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
            inner = _window(value)
            for item in vars(value).values():
                walk(item, window if inner is None else inner)

    walk(cache, None)
    return found


def _window(layer: Any) -> int | None:
    """The window of a sliding cache layer, by its own word."""
    if getattr(layer, "is_sliding", False) is not True:
        return None
    window = getattr(layer, "sliding_window", None)
    return window if isinstance(window, int) and not isinstance(window, bool) else None
