"""Compares tokens and logits of two runs. Pure."""

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

#: Largest allowed difference of logits, as a share of the largest logit. In float32 only the order of sums
#: differs; in half precision every operation rounds.
TOLERANCE: Final = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Differences of a run from the plain model.

    Attributes:
        tokens_equal: whether all generated tokens are equal, except for near-ties.
        num_tokens: number of compared tokens.
        near_ties: number of sequences whose first different token is one at which the plain model's two
            largest logits differ by less than the tolerance.
        logit_error: largest difference of logits as long as the tokens agree, as a share of the plain model's
            largest logit.
        tolerance: largest allowed `logit_error`.
        first_difference: the first different token in words; empty if there is none.
    """

    tokens_equal: bool
    num_tokens: int
    near_ties: int
    logit_error: float
    tolerance: float
    first_difference: str = ""

    @property
    def passed(self) -> bool:
        """Whether the tokens are equal and the logits within the tolerance."""
        return self.tokens_equal and self.logit_error <= self.tolerance


def compare(
    plain_tokens: list[list[int]],
    tokens: list[list[int]],
    plain_logits: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    dtype: str,
) -> Comparison:
    """Compare a run with a run of the plain model.

    Args:
        plain_tokens: new tokens of each sequence of the plain model.
        tokens: the same of the other run.
        plain_logits: logits of the plain model, of shape (steps, batch, vocabulary), or of shape
            (1, batch, length, vocabulary) for an encoder.
        logits: the same of the other run.
        dtype: dtype of both runs, a key of `TOLERANCE`.
    """
    tolerance = TOLERANCE[dtype]
    scale = float(np.abs(plain_logits[np.isfinite(plain_logits)]).max(initial=1e-30))
    if len(plain_tokens) != len(tokens) or logits.shape[1:] != plain_logits.shape[1:]:
        return _unlike(f"{len(tokens)} sequences instead of {len(plain_tokens)}", tolerance)
    worst, near_ties, count, first = 0.0, 0, 0, ""
    for row, (expected, actual) in enumerate(zip(plain_tokens, tokens, strict=True)):
        length = max(len(expected), len(actual))
        agreed = next((i for i in range(length) if expected[i : i + 1] != actual[i : i + 1]), length)
        count += agreed
        # The logits of the first different token follow equal tokens, so they are compared, too. An encoder
        # has only one step.
        steps = min(agreed + 1, len(logits), len(plain_logits))
        if logits.ndim == 4:
            steps = 1
        for step in range(steps):
            worst = max(worst, _largest_difference(plain_logits[step, row], logits[step, row]) / scale)
        if agreed == length:
            continue
        if logits.ndim == 3 and agreed < len(plain_logits):
            best = np.sort(plain_logits[agreed, row])[-2:]
            if (best[1] - best[0]) / scale <= tolerance:
                near_ties += 1
                continue
        first = first or (
            f"sequence {row}, token {agreed}: {actual[agreed : agreed + 1]} instead of "
            f"{expected[agreed : agreed + 1]}"
        )
    return Comparison(
        tokens_equal=not first,
        num_tokens=count,
        near_ties=near_ties,
        logit_error=worst,
        tolerance=tolerance,
        first_difference=first,
    )


def _largest_difference(expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32]) -> float:
    """Largest absolute difference of finite entries.

    Masked entries are -inf in both arrays. The result is infinite if an entry is finite in only one of them,
    or NaN.
    """
    if np.isnan(actual).any() or not np.array_equal(np.isfinite(expected), np.isfinite(actual)):
        return float("inf")
    finite = np.isfinite(expected)
    return float(np.abs(actual[finite] - expected[finite]).max(initial=0.0))


def _unlike(words: str, tolerance: float) -> Comparison:
    return Comparison(
        tokens_equal=False,
        num_tokens=0,
        near_ties=0,
        logit_error=float("inf"),
        tolerance=tolerance,
        first_difference=words,
    )
