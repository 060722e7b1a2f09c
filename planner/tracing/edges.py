"""Activation flow between modules, per token, from what prefill read at several sizes."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from planner.graph.schema import Edge
from planner.tracing.cost_tracer import PhaseSample
from planner.tracing.fits import PREFILL_TERMS, TERMS, Size, fit


def flow(samples: Mapping[Size, PhaseSample]) -> tuple[Edge, ...]:
    """Edges between modules, from the bytes that flowed at each size.

    What grows with the prompt is counted per token. What does not (an encoder-decoder's first token)
    is counted as the one token it is. Masks grow with the square of the prompt and count as they grow
    linearly, which is not at all; an edge that carries nothing else says 0.
    """
    pairs = list(dict.fromkeys(pair for sample in samples.values() for pair in sample.edges))
    if not pairs:
        return ()
    edges: list[Counter[tuple[str, str]]] = [sample.edges for sample in samples.values()]
    matrix = np.array([[found[pair] for pair in pairs] for found in edges], np.float64)
    coefficients, _ = fit(list(samples), PREFILL_TERMS, matrix)
    rows = {term: coefficients[list(TERMS).index(term)] for term in TERMS}
    return tuple(
        Edge(
            source=source,
            target=target,
            bytes_per_token=max(0.0, float(rows["bp"][i] or rows["b"][i])),
        )
        for i, (source, target) in enumerate(pairs)
    )
