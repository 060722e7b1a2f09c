"""Activation flow between modules, per token, from prefill samples at several sizes."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from planner.graph.schema import Edge
from planner.tracing.cost_tracer import PhaseSample
from planner.tracing.fits import PREFILL_TERMS, TERMS, Size, fit


def flow(samples: Mapping[Size, PhaseSample]) -> tuple[Edge, ...]:
    """Edges between modules, from the bytes that flowed at each size.

    Bytes per token are the coefficient of the prompt's length, or, where nothing grows with the prompt (an
    encoder-decoder's first token), of the batch. Masks grow with the square of the prompt only, so an edge
    with nothing but masks has 0.
    """
    pairs = list(dict.fromkeys(pair for sample in samples.values() for pair in sample.edges))
    if not pairs:
        return ()
    edges: list[Counter[tuple[str, str]]] = [sample.edges for sample in samples.values()]
    matrix = np.array([[num_bytes[pair] for pair in pairs] for num_bytes in edges], np.float64)
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
