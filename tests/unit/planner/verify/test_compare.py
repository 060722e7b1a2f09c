"""When two runs count as equal."""

import numpy as np
import pytest

from planner.verification.compare import TOLERANCE, compare


def _logits(tokens: list[int], *, margin: float = 5.0) -> np.ndarray:
    """One sequence: at each step its token has 10, the next one 10 - margin, the others 0."""
    logits = np.zeros((len(tokens), 1, 8), np.float32)
    for step, token in enumerate(tokens):
        logits[step, 0, token] = 10
        logits[step, 0, (token + 1) % 8] = 10 - margin
    return logits


def test_the_same_run_passes() -> None:
    logits = _logits([1, 2, 3])
    result = compare([[1, 2, 3]], [[1, 2, 3]], logits, logits, "float32")
    assert result.passed
    assert (result.num_tokens, result.logit_error) == (3, 0.0)


def test_another_token_fails_and_is_named() -> None:
    result = compare([[1, 2, 3]], [[1, 5, 3]], _logits([1, 2, 3]), _logits([1, 5, 3]), "float32")
    assert not result.passed
    assert "token 1: [5] instead of [2]" in result.first_difference


def test_a_near_tie_is_no_difference() -> None:
    plain, other = _logits([1, 2], margin=1e-4), _logits([1, 3], margin=1e-4)
    other[1, 0, 2] = 10 - 1e-4
    result = compare([[1, 2]], [[1, 3]], plain, other, "float16")
    assert result.tokens_equal
    assert result.near_ties == 1


def test_a_missing_token_is_a_difference() -> None:
    assert not compare([[1, 2, 3]], [[1, 2]], _logits([1, 2, 3]), _logits([1, 2]), "float32").passed


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_beyond_tolerance_fail_though_tokens_agree(dtype: str) -> None:
    plain = _logits([1, 2])
    within, beyond = plain.copy(), plain.copy()
    within[0, 0, 6] += 10 * TOLERANCE[dtype] * 0.9
    beyond[0, 0, 6] += 10 * TOLERANCE[dtype] * 1.1
    assert compare([[1, 2]], [[1, 2]], plain, within, dtype).passed
    assert not compare([[1, 2]], [[1, 2]], plain, beyond, dtype).passed


def test_another_number_of_sequences_fails() -> None:
    logits = _logits([1])
    assert not compare([[1]], [[1], [1]], logits, logits, "float32").passed
