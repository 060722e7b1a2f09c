"""The comparison passes what is equal or too close to call, and nothing else."""

import numpy as np
import numpy.typing as npt
import pytest

from planner.verify.compare import TOLERANCE, Comparison, compare

#: Two steps, one sequence, three words; the largest logit is 10, so float32 allows 1e-3.
PLAIN = np.array([[[10.0, 0.0, 1.0]], [[0.0, 10.0, 9.9995]]], dtype=np.float32)


def against_plain(tokens: list[list[int]], logits: npt.NDArray[np.float32]) -> Comparison:
    return compare([[0, 1]], tokens, PLAIN, logits, "float32")


def changed(step: int, word: int, value: float) -> npt.NDArray[np.float32]:
    logits = PLAIN.copy()
    logits[step, 0, word] = value
    return logits


def test_equal() -> None:
    found = against_plain([[0, 1]], PLAIN)
    assert found.passed
    assert (found.num_tokens, found.near_ties, found.logit_error) == (2, 0, 0.0)


def test_a_near_tie_is_no_difference() -> None:
    # The plain model's best two are 0.0005 apart, 5e-5 of the largest.
    found = against_plain([[0, 2]], changed(1, 2, 10.0002))
    assert found.passed
    assert found.near_ties == 1
    assert found.num_tokens == 1


def test_another_token_that_was_not_close() -> None:
    found = against_plain([[2, 1]], changed(0, 2, 11.0))
    assert not found.tokens_equal
    assert found.first_difference == "sequence 0, token 0: [2] instead of [0]"


def test_a_sequence_that_stops_early() -> None:
    plain = PLAIN.copy()
    plain[1, 0, 2] = 1.0
    found = compare([[0, 1]], [[0]], plain, plain[:1], "float32")
    assert not found.tokens_equal
    assert "token 1: [] instead of [1]" in found.first_difference


def test_equal_tokens_with_other_logits() -> None:
    found = against_plain([[0, 1]], changed(0, 1, 0.5))
    assert found.tokens_equal
    assert found.logit_error == pytest.approx(0.05)
    assert not found.passed


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


def test_every_dtype_that_runs_has_a_tolerance() -> None:
    assert set(TOLERANCE) == {"float32", "float16", "bfloat16"}
