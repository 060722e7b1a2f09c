"""Fits factors on the terms of a model: ridge regression with forward selection by cross-validation.

An error is the logarithm of predicted divided by measured, and a parameter θ is the logarithm of the factor
on a term. Gauss-Newton steps minimise Σ error² + RIDGE · Σ θ². Terms are added one after another, each time
the one with the largest improvement, as long as the prediction of groups left out of the fit improves.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: Function from parameters and the indices of rows to errors, of shape (rows, errors of each row).
Errors = Callable[[Array, NDArray[np.intp]], Array]

#: Ratio of the variances of the remaining errors (about 10 %) and of the terms (about 50 %).
RIDGE: Final = (0.1 / 0.5) ** 2
#: Least improvement that adds a term: in standard errors over the groups, and relative to the squared error.
STANDARD_ERRORS: Final = 2.0
SMALLEST_GAIN: Final = 0.05
#: Smallest number of groups for cross-validation.
FEWEST_GROUPS: Final = 4
_NUM_STEPS: Final = 6
_STEP: Final = 0.02
_LARGEST_STEP: Final = 0.5


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The trial of one term in addition to the terms selected before.

    Attributes:
        term: index of the term.
        before, after: cross-validated root mean square error without and with the term.
        theta: logarithm of its factor, fitted to all rows.
        taken: whether the term was selected.
    """

    term: int
    before: float
    after: float
    theta: float
    taken: bool


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a fit.

    Attributes:
        theta: logarithm of each term's factor; 0 for terms that were not selected.
        trials: the last trial of each term, in the order of the terms.
        before, after: cross-validated root mean square error without and with all selected terms.
    """

    theta: Array
    trials: tuple[Trial, ...]
    before: float
    after: float


def fit(errors: Errors, groups: Sequence[int], upper: Array) -> Fit:
    """Fit factors to the errors.

    Args:
        errors: function from parameters and indices of rows to the model's errors, of shape (rows, errors of
            each row).
        groups: group of each row, numbered from 0; the rows of a group are left out together.
        upper: upper bound of θ for each term.

    Raises:
        ValueError: there are fewer than `FEWEST_GROUPS` groups.
    """
    if len(set(groups)) < FEWEST_GROUPS:
        raise ValueError(f"{len(set(groups))} groups cannot be cross-validated; {FEWEST_GROUPS} are needed")
    work = _Work(errors, np.asarray(groups, dtype=np.intp), upper)
    active: list[int] = []
    theta = np.zeros(len(upper))
    scores = start = work.scores([], theta)
    trials: dict[int, Trial] = {}
    while len(active) < len(upper):
        candidates = []
        for term in set(range(len(upper))) - set(active):
            fitted = work.solve([*active, term])
            candidates.append((work.scores([*active, term], fitted), fitted, term))
        best = min(candidates, key=lambda candidate: (float(candidate[0].mean()), candidate[2]))
        takes = _is_better(scores, best[0])
        for after, fitted, term in candidates:
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
    """Whether the mean improvement over the groups is statistically significant and large enough."""
    gain = before - after
    standard_error = float(gain.std(ddof=1)) / np.sqrt(len(gain))
    mean = float(gain.mean())
    return bool(mean > STANDARD_ERRORS * standard_error and mean > SMALLEST_GAIN * float(before.mean()))


def _root(scores: Array) -> float:
    return float(np.sqrt(scores.mean()))


class _Work:
    """Gauss-Newton steps and cross-validation scores for a set of rows; every group has the same weight."""

    def __init__(self, errors: Errors, groups: NDArray[np.intp], upper: Array) -> None:
        self.errors, self.groups, self.upper = errors, groups, upper
        self.rows = np.arange(len(groups))
        self.weights = 1 / np.bincount(groups)[groups]

    def solve(self, active: list[int]) -> Array:
        """Fit θ to all rows; θ of inactive terms is 0."""
        theta = np.zeros(len(self.upper))
        for _ in range(_NUM_STEPS):
            moved = self._clipped(theta + self._step(theta, active, *self._slopes(theta, active), self.rows))
            done = float(np.abs(moved - theta).max()) < 1e-3
            theta = moved
            if done:
                break
        return theta

    def scores(self, active: list[int], theta: Array) -> Array:
        """Mean square error of each group with the θ fitted to the other groups.

        That θ is approximated by one step from the θ of all rows. The group's errors are computed with it.
        """
        slopes = self._slopes(theta, active) if active else None
        scores = []
        for group in range(int(self.groups.max()) + 1):
            left_out = self.rows[self.groups == group]
            others = self.rows[self.groups != group]
            fitted = theta if slopes is None else theta + self._step(theta, active, *slopes, others)
            scores.append(float((self.errors(self._clipped(fitted), left_out) ** 2).mean()))
        return np.asarray(scores)

    def _slopes(self, theta: Array, active: list[int]) -> tuple[Array, Array]:
        """The errors, and their derivatives with respect to the active terms (last axis)."""
        errors = self.errors(theta, self.rows)
        slopes = []
        for term in active:
            shifted = theta.copy()
            shifted[term] -= _STEP
            slopes.append((errors - self.errors(shifted, self.rows)) / _STEP)
        return errors, np.stack(slopes, axis=-1)

    def _step(
        self, theta: Array, active: list[int], errors: Array, slopes: Array, rows: NDArray[np.intp]
    ) -> Array:
        weights = np.repeat(self.weights[rows], errors.shape[1])
        matrix = slopes[rows].reshape(-1, len(active))
        normal = (matrix.T * weights) @ matrix + RIDGE * np.eye(len(active))
        pull = (matrix.T * weights) @ errors[rows].reshape(-1) + RIDGE * theta[active]
        step = np.zeros(len(theta))
        step[active] = -np.linalg.solve(normal, pull)
        return np.asarray(np.clip(step, -_LARGEST_STEP, _LARGEST_STEP))

    def _clipped(self, theta: Array) -> Array:
        return np.asarray(np.minimum(theta, self.upper))
