"""Sums over weights and their errors, and the measures derived from them."""

import math
from typing import Final

import numpy as np

from ..groups import blocks

#: Weights whose errors are summed at once: their float64s fit a core's cache.
_TILE_NUMEL: Final = 32 << 10


def relative_error(weight_energy: float, error_energy: float) -> float:
    """Norm of the error over the norm of the weights, from the sums of squares of both."""
    if error_energy == 0.0:
        return 0.0
    return math.sqrt(error_energy / weight_energy) if weight_energy else math.inf


def sqnr_db(weight_energy: float, error_energy: float) -> float:
    """10 log10(weights / errors), of their sums of squares."""
    if error_energy == 0.0:
        return math.inf
    share = weight_energy / error_energy
    return 10.0 * math.log10(share) if share else -math.inf


class Sums:
    """What is summed up over one tensor's strips."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.weight_energy = self.error_energy = self.max_abs_error = 0.0
        self.num_nonfinite = 0

    def add(self, original: blocks.Block, decoded: blocks.Block) -> None:
        """Add a strip: its weights, and what was decoded in their place."""
        flat, flat_decoded = original.reshape(-1), decoded.reshape(-1)
        for begin in range(0, flat.size, _TILE_NUMEL):
            tile = slice(begin, begin + _TILE_NUMEL)
            self._add(blocks.widen(flat[tile]), blocks.widen(flat_decoded[tile]))

    def _add(self, weights: blocks.Floats, decoded: blocks.Floats) -> None:
        is_finite = np.isfinite(weights)
        if not is_finite.all():
            self.num_nonfinite += int(np.count_nonzero(~is_finite))
            weights, decoded = weights[is_finite], decoded[is_finite]
        if weights.size == 0:
            return
        # In float64: squares of bfloat16's small weights are below what float32 can hold.
        wide = weights.astype(np.float64)
        error = decoded.astype(np.float64) - wide
        self.weight_energy += float(np.dot(wide, wide))
        self.error_energy += float(np.dot(error, error))
        self.max_abs_error = max(self.max_abs_error, float(np.abs(error).max()))
