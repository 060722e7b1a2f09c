"""What is no number, masked words, encoders and other shapes."""

import numpy as np
import numpy.typing as npt
import pytest

from planner.verification.compare import Comparison, compare

#: Two steps, one sequence, three words; the largest logit is 10, so float32 allows 1e-3.
PLAIN = np.array([[[10.0, 0.0, 1.0]], [[0.0, 10.0, 9.9995]]], dtype=np.float32)


def against_plain(tokens: list[list[int]], logits: npt.NDArray[np.float32]) -> Comparison:
    return compare([[0, 1]], tokens, PLAIN, logits, "float32")


def changed(step: int, word: int, value: float) -> npt.NDArray[np.float32]:
    logits = PLAIN.copy()
    logits[step, 0, word] = value
    return logits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_fails(value: float) -> None:
    assert not against_plain([[0, 1]], changed(0, 1, value)).passed


def test_masked_words_are_equal() -> None:
    masked = changed(0, 1, -np.inf)
    assert compare([[0, 1]], [[0, 1]], masked, masked, "float32").passed


def test_an_encoder_compares_its_one_step() -> None:
    plain = np.zeros((1, 1, 2, 3), dtype=np.float32)
    plain[..., 0] = 1.0
    other = plain.copy()
    other[0, 0, 1, 1] = 0.5
    assert compare([[0, 0]], [[0, 0]], plain, plain, "float32").passed
    assert compare([[0, 0]], [[0, 0]], plain, other, "float32").logit_error == pytest.approx(0.5)


def test_other_shapes() -> None:
    assert not compare([[0, 1]], [[0, 1], [0, 1]], PLAIN, PLAIN, "float32").passed
    assert not against_plain([[0, 1]], PLAIN[..., :2]).passed
