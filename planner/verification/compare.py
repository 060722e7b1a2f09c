"""Tokens and logits of two runs, compared: pure arithmetic on arrays."""

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

#: Largest allowed logit difference, as a share of the largest logit: float32 sums in another order,
#: half precision rounds each of them.
TOLERANCE: Final = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How a run differs from the plain model.

    Attributes:
        tokens_equal: every generated token is the same, near-ties aside.
        num_tokens: tokens compared.
        near_ties: sequences that part where the plain model's two best logits are within tolerance.
        logit_error: largest difference, as a share of the plain model's largest logit, while tokens agree.
        tolerance: what was allowed.
        first_difference: in words, or empty.
    """

    tokens_equal: bool
    num_tokens: int
    near_ties: int
    logit_error: float
    tolerance: float
    first_difference: str = ""

    @property
    def passed(self) -> bool:
        """Tokens equal and logits within tolerance."""
        return self.tokens_equal and self.logit_error <= self.tolerance


def compare(
    plain_tokens: list[list[int]],
    tokens: list[list[int]],
    plain_logits: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    dtype: str,
) -> Comparison:
    """Compare a run with the plain model's.

    Args:
        plain_tokens: new tokens of each sequence.
        tokens: the other run's.
        plain_logits: (steps, batch, vocabulary), or (1, batch, length, vocabulary) of an encoder.
        logits: the other run's.
        dtype: both ran in.
    """
    tolerance = TOLERANCE[dtype]
    scale = float(np.abs(plain_logits[np.isfinite(plain_logits)]).max(initial=1e-30))
    if len(plain_tokens) != len(tokens) or logits.shape[1:] != plain_logits.shape[1:]:
        return _unlike(f"{len(tokens)} sequences instead of {len(plain_tokens)}", tolerance)
    worst, near_ties, count, first = 0.0, 0, 0, ""
    for row, (expected, found) in enumerate(zip(plain_tokens, tokens, strict=True)):
        length = max(len(expected), len(found))
        parted = next((i for i in range(length) if expected[i : i + 1] != found[i : i + 1]), length)
        count += parted
        # An encoder's logits come in one step; a generator's step after the last agreement still compares.
        steps = min(parted + 1, len(logits), len(plain_logits))
        if logits.ndim == 4:
            steps = 1
        for step in range(steps):
            worst = max(worst, _largest_difference(plain_logits[step, row], logits[step, row]) / scale)
        if parted == length:
            continue
        if logits.ndim == 3 and parted < len(plain_logits):
            best = np.sort(plain_logits[parted, row])[-2:]
            if (best[1] - best[0]) / scale <= tolerance:
                near_ties += 1
                continue
        first = first or (
            f"sequence {row}, token {parted}: {found[parted : parted + 1]} instead of "
            f"{expected[parted : parted + 1]}"
        )
    return Comparison(
        tokens_equal=not first,
        num_tokens=count,
        near_ties=near_ties,
        logit_error=worst,
        tolerance=tolerance,
        first_difference=first,
    )


def _largest_difference(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    """Infinite where only one of them is a number: masked entries are -inf in both, NaN is never right."""
    if np.isnan(found).any() or not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return float("inf")
    finite = np.isfinite(expected)
    return float(np.abs(found[finite] - expected[finite]).max(initial=0.0))


def _unlike(words: str, tolerance: float) -> Comparison:
    return Comparison(
        tokens_equal=False,
        num_tokens=0,
        near_ties=0,
        logit_error=float("inf"),
        tolerance=tolerance,
        first_difference=words,
    )
