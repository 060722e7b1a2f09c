"""Fits polynomials in batch, prompt and context to samples, and finds those that can be the maximum."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from math import comb
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from planner.graph.schema import Poly

Array = npt.NDArray[np.float64]

# Exponents of batch, prompt and context in each term of Poly, in Poly's order.
TERMS: Final = {
    "const": (0, 0, 0),
    "b": (1, 0, 0),
    "p": (0, 1, 0),
    "bp": (1, 1, 0),
    "p2": (0, 2, 0),
    "bp2": (1, 2, 0),
    "c": (0, 0, 1),
    "bc": (1, 0, 1),
}
PREFILL_TERMS: Final = ("const", "b", "p", "bp", "p2", "bp2")
DECODE_TERMS: Final = ("const", "b", "c", "bc")
DECODE_TERMS_WITH_ENCODER: Final = ("const", "b", "p", "bp", "c", "bc")
# Samples are integers, so that exact coefficients are integers or simple fractions.
_GRAIN: Final = 16


class Size(msgspec.Struct, frozen=True):
    """The size of a sample.

    Attributes:
        batch: sequences.
        prompt: prompt tokens.
        context: tokens that the decode step sees; 0 in prefill.
    """

    batch: int
    prompt: int
    context: int = 0


def design(sizes: Sequence[Size], terms: Sequence[str]) -> Array:
    """The design matrix: one row per size, one column per term."""
    rows = []
    for size in sizes:
        powers = [TERMS[t] for t in terms]
        rows.append([size.batch**i * size.prompt**j * size.context**k for i, j, k in powers])
    return np.array(rows, np.float64)


def fit(sizes: Sequence[Size], terms: Sequence[str], samples: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Fits a polynomial to every column of `samples`.

    Args:
        sizes: at least as many as there are terms, in general position.
        terms: names of Poly's fields to fit.
        samples: values of shape (sizes, columns).

    Returns:
        Coefficients of shape (8, columns) in Poly's order, and for each column whether they reproduce it
        exactly. A column that is no polynomial in these terms gets a least-squares fit, raised by a constant
        so that it is below no sample.
    """
    matrix = design(sizes, terms)
    scale = np.abs(matrix).max(axis=0)
    solved = np.linalg.lstsq(matrix / scale, samples, rcond=None)[0] / scale[:, None]
    snapped = np.rint(solved * _GRAIN) / _GRAIN
    exact = (matrix @ snapped == samples).all(axis=0)
    lift = np.maximum(samples - matrix @ solved, 0.0).max(axis=0, initial=0.0)
    coefficients = np.where(exact, snapped, solved)
    coefficients[list(terms).index("const")] += np.where(exact, 0.0, lift)
    full = np.zeros((len(TERMS), samples.shape[1]))
    for row, term in enumerate(terms):
        full[list(TERMS).index(term)] = coefficients[row]
    return full + 0.0, exact  # no negative zeros


@cache
def _counted_from(prompt: int) -> Array:
    """The matrix that maps coefficients to those of batch = 1 + b, prompt = `prompt` + p, context = 1 + c."""
    matrix = np.zeros((len(TERMS), len(TERMS)))
    row_of = {powers: i for i, powers in enumerate(TERMS.values())}
    for column, (i, j, k) in enumerate(TERMS.values()):
        for lower in product(range(i + 1), range(j + 1), range(k + 1)):
            binomials = comb(i, lower[0]) * comb(j, lower[1]) * comb(k, lower[2])
            matrix[row_of[lower], column] += binomials * prompt ** (j - lower[1])
    return matrix


def undominated(coefficients: Array, shortest_prompt: int = 1) -> Array:
    """The columns of `coefficients`, of shape (8, n), that no other column dominates.

    A column is dominated when another one is at least as high at every batch and context of at least 1 and
    every prompt of at least `shortest_prompt`.
    """
    columns = np.unique(coefficients, axis=1)
    shifted = _counted_from(shortest_prompt) @ columns
    keep = np.ones(columns.shape[1], bool)
    for i in np.argsort(-shifted.sum(axis=0), kind="stable"):
        if keep[i]:
            above = np.any(shifted > shifted[:, i : i + 1], axis=0)
            above[i] = True
            keep &= above
    kept: Array = columns[:, keep]
    return kept


def poly(column: Iterable[float]) -> Poly:
    """The Poly with the eight coefficients of `column`."""
    return Poly(*(float(value) + 0.0 for value in column))
