"""Factors on a model's parameters that its errors ask for: ridge regression, kept only if cross-validated.

Errors are logarithms of predicted over measured, and a parameter θ is the logarithm of the factor on a term.
Σ error² + RIDGE · Σ θ² is minimised by Gauss and Newton's steps. Terms are taken up one after another, the
one that helps most first, as long as groups that were left out of the fit are predicted better for it.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: Errors of some rows (their indices) under parameters: a row of numbers for each.
Errors = Callable[[Array, NDArray[np.intp]], Array]

#: Errors that a fit leaves are about 10 %, and a term is off by about half: the ratio of the variances.
RIDGE: Final = (0.1 / 0.5) ** 2
#: An improvement counts from so many of its standard errors over the groups, and from this share on.
STANDARD_ERRORS: Final = 2.0
SMALLEST_GAIN: Final = 0.05
#: Fewer groups say nothing about rows that were left out.
FEWEST_GROUPS: Final = 4
_NUM_STEPS: Final = 6
_STEP: Final = 0.02
_LARGEST_STEP: Final = 0.5


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One term that was tried beside those already taken.

    Attributes:
        term: its index.
        before, after: root mean square error of what was left out, without and with the term.
        theta: logarithm of the factor that all rows ask for.
        taken: whether it was changed.
    """

    term: int
    before: float
    after: float
    theta: float
    taken: bool


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What came out.

    Attributes:
        theta: logarithm of each term's factor; 0 for what is left alone.
        trials: the last trial of each term, in the order of the terms.
        before, after: cross-validated root mean square error of the whole.
    """

    theta: Array
    trials: tuple[Trial, ...]
    before: float
    after: float


def fit(errors: Errors, groups: Sequence[int], upper: Array) -> Fit:
    """Fit factors to the errors.

    Args:
        errors: of the model, for given rows under given parameters; shape (rows, numbers of each).
        groups: which rows are left out together, one number from 0 on for each row.
        upper: the largest θ of each term.

    Raises:
        ValueError: fewer than `FEWEST_GROUPS` groups.
    """
    if len(set(groups)) < FEWEST_GROUPS:
        raise ValueError(f"{len(set(groups))} groups cannot be cross-validated; {FEWEST_GROUPS} are needed")
    work = _Work(errors, np.asarray(groups, dtype=np.intp), upper)
    active: list[int] = []
    theta = np.zeros(len(upper))
    scores = start = work.scores([], theta)
    trials: dict[int, Trial] = {}
    while len(active) < len(upper):
        found = []
        for term in set(range(len(upper))) - set(active):
            fitted = work.solve([*active, term])
            found.append((work.scores([*active, term], fitted), fitted, term))
        best = min(found, key=lambda one: (float(one[0].mean()), one[2]))
        takes = _is_better(scores, best[0])
        for after, fitted, term in found:
            trials[term] = Trial(
                term=term,
                before=_root(scores),
                after=_root(after),
                theta=float(fitted[term]),
                taken=takes and term == best[2],
            )
        if not takes:
            break
        scores, theta = best[0], best[1]
        active.append(best[2])
    ordered = tuple(trials[term] for term in sorted(trials))
    return Fit(theta=theta, trials=ordered, before=_root(start), after=_root(scores))


def _is_better(before: Array, after: Array) -> bool:
    """Whether the gain over the groups is more than chance and more than a trifle."""
    gain = before - after
    doubt = float(gain.std(ddof=1)) / np.sqrt(len(gain))
    mean = float(gain.mean())
    return bool(mean > STANDARD_ERRORS * doubt and mean > SMALLEST_GAIN * float(before.mean()))


def _root(scores: Array) -> float:
    return float(np.sqrt(scores.mean()))


class _Work:
    """Steps and scores for one set of rows; each group weighs the same."""

    def __init__(self, errors: Errors, groups: NDArray[np.intp], upper: Array) -> None:
        self.errors, self.groups, self.upper = errors, groups, upper
        self.rows = np.arange(len(groups))
        self.weights = 1 / np.bincount(groups)[groups]

    def solve(self, active: list[int]) -> Array:
        """θ of all rows, with what is not active at 0."""
        theta = np.zeros(len(self.upper))
        for _ in range(_NUM_STEPS):
            moved = self._clipped(theta + self._step(theta, active, *self._slopes(theta, active), self.rows))
            done = float(np.abs(moved - theta).max()) < 1e-3
            theta = moved
            if done:
                break
        return theta

    def scores(self, active: list[int], theta: Array) -> Array:
        """Mean square error of each group under the θ that the other groups ask for.

        That θ is one step from the θ of all; the group's errors are computed anew with it.
        """
        slopes = self._slopes(theta, active) if active else None
        found = []
        for group in range(int(self.groups.max()) + 1):
            mine = self.rows[self.groups == group]
            others = self.rows[self.groups != group]
            left = theta if slopes is None else theta + self._step(theta, active, *slopes, others)
            found.append(float((self.errors(self._clipped(left), mine) ** 2).mean()))
        return np.asarray(found)

    def _slopes(self, theta: Array, active: list[int]) -> tuple[Array, Array]:
        """Errors, and their derivatives by the active terms in the last axis."""
        here = self.errors(theta, self.rows)
        slopes = []
        for term in active:
            beside = theta.copy()
            beside[term] -= _STEP
            slopes.append((here - self.errors(beside, self.rows)) / _STEP)
        return here, np.stack(slopes, axis=-1)

    def _step(
        self, theta: Array, active: list[int], here: Array, slopes: Array, rows: NDArray[np.intp]
    ) -> Array:
        weights = np.repeat(self.weights[rows], here.shape[1])
        matrix = slopes[rows].reshape(-1, len(active))
        normal = (matrix.T * weights) @ matrix + RIDGE * np.eye(len(active))
        pull = (matrix.T * weights) @ here[rows].reshape(-1) + RIDGE * theta[active]
        step = np.zeros(len(theta))
        step[active] = -np.linalg.solve(normal, pull)
        return np.asarray(np.clip(step, -_LARGEST_STEP, _LARGEST_STEP))

    def _clipped(self, theta: Array) -> Array:
        return np.asarray(np.minimum(theta, self.upper))
