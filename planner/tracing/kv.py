"""KV-cache bytes by module, fitted to the contents of the cache object after decode steps."""

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from planner.graph.schema import KvCost
from planner.tracing.cost_tracer import PhaseSample
from planner.tracing.fits import TERMS, Size, fit
from planner.tracing.forwards import is_under


def kv_costs(
    two: Mapping[Size, PhaseSample], four: Mapping[Size, PhaseSample], terms: tuple[str, ...]
) -> dict[str, KvCost]:
    """Cache bytes of every module that adds to the cache.

    Args:
        two: decode samples of the model with 2 bytes an element, by size.
        four: the same with 4 bytes an element.
        terms: names of Poly's fields to fit.

    Returns:
        Module fqn → its cache bytes; empty without decode samples.
    """
    if not two:
        return {}
    at_two = {size: _bytes_by_module(sample) for size, sample in two.items()}
    at_four = {size: _bytes_by_module(sample) for size, sample in four.items()}
    first = next(iter(two))
    windows = _windows(two[first])
    names = list(at_two[first])
    matrix = np.array([[held[name] for name in names] for held in at_two.values()], np.float64)
    coefficients, _ = fit(list(two), terms, matrix)
    rows = {term: coefficients[list(TERMS).index(term)] for term in TERMS}
    return {
        name: KvCost(
            per_sequence=float(rows["b"][i]),
            per_token=float(rows["bc"][i]),
            per_prompt_token=float(rows["bp"][i]),
            window=windows.get(name),
            fixed_dtype=at_two[first][name] == at_four[first][name],
        )
        for i, name in enumerate(names)
    }


def _bytes_by_module(sample: PhaseSample) -> Counter[str]:
    held: Counter[str] = Counter()
    for cached in sample.cached:
        held[cached.name] += cached.num_bytes
    for replay in sample.replays:
        for name in [n for n in held if is_under(n, replay.source)]:
            held[replay.rename(name)] = held[name]
    return held


def _windows(sample: PhaseSample) -> dict[str, int]:
    """The window of each module whose cached tensors all have the same one."""
    windows: dict[str, set[int | None]] = defaultdict(set)
    for cached in sample.cached:
        windows[cached.name].add(cached.window)
    for replay in sample.replays:
        for name in [n for n in windows if is_under(n, replay.source)]:
            windows[replay.rename(name)] = windows[name]
    return {
        n: w for n, values in windows.items() if len(values) == 1 and (w := next(iter(values))) is not None
    }
