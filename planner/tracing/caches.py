"""Tensors in a cache object of any class, and the cache entries of layers that are replayed."""

from typing import Any, Final

import msgspec
import torch
from torch import nn

from planner.tracing.layers import Layer

# An encoder-decoder's cache is two caches.
_CACHE_HALVES: Final = ("self_attention_cache", "cross_attention_cache")


class CachedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor in a cache.

    Attributes:
        tensor: the tensor itself.
        window: tokens after which its cache layer stops growing, or None.
        is_content: whether it is keys, values or a state; caches also keep small counters as tensors.
    """

    tensor: torch.Tensor
    window: int | None
    is_content: bool


def cached_tensors(cache: Any) -> list[CachedTensor]:
    """Every tensor in `cache` except empty ones."""
    tensors: list[CachedTensor] = []
    seen: set[int] = set()
    # A recursive closure would be a reference cycle and keep the tensors alive.
    waiting: list[tuple[Any, int | None]] = [(cache, None)]
    while waiting:
        value, window = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.numel():
                tensors.append(CachedTensor(tensor=value, window=window, is_content=value.dim() > 1))
        elif isinstance(value, (list, tuple)):
            waiting.extend((item, window) for item in reversed(value))
        elif isinstance(value, dict):
            waiting.extend((item, window) for item in reversed(value.values()))
        elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
            own = _window(value)
            inner = window if own is None else own
            waiting.extend((item, inner) for item in reversed(vars(value).values()))
    return tensors


def _window(layer: Any) -> int | None:
    """The window that a sliding cache layer states; None for others."""
    if getattr(layer, "is_sliding", False) is not True:
        return None
    window = getattr(layer, "sliding_window", None)
    return window if isinstance(window, int) and not isinstance(window, bool) else None


def share_cache_layers(leaves: list[Any], ran: Layer, skipped: Layer) -> None:
    """Sets the cache entries of a layer that was not run to those of the equal layer that was.

    Args:
        leaves: arguments of the layer; the caches among them are changed.
        ran: the layer that was run.
        skipped: the layer that was not.
    """
    pairs = [(a, b) for a, b in zip(ran.indices, skipped.indices, strict=True) if a != b]
    for leaf in leaves:
        for cache in (leaf, *(getattr(leaf, name, None) for name in _CACHE_HALVES)):
            layers = getattr(cache, "layers", None)
            if not isinstance(layers, list):
                continue
            for source, target in set(pairs):
                if source < len(layers):
                    while len(layers) <= target:
                        layers.append(layers[source])
                    layers[target] = layers[source]
        updated = getattr(leaf, "is_updated", None)
        if isinstance(updated, dict):
            for source, target in pairs:
                if source in updated:
                    updated[target] = updated[source]
