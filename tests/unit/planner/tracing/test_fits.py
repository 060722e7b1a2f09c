"""Closed forms: exact from few samples, never below a sample, and only those that matter are kept."""

import numpy as np
import pytest

from planner.graph.schema import Poly
from planner.tracing.fits import (
    DECODE_TERMS,
    PREFILL_TERMS,
    TERMS,
    Size,
    design,
    fit,
    poly,
    undominated,
)
from planner.tracing.sampling import sizes_to_sample

SIZES = [Size(batch, prompt) for batch, prompt in sizes_to_sample(64)]


def columns(*polys: Poly) -> np.ndarray:
    return np.array([[getattr(p, term) for term in TERMS] for p in polys]).T


def sampled(*polys: Poly) -> np.ndarray:
    return np.array([[p(batch=s.batch, prompt=s.prompt, context=s.context) for p in polys] for s in SIZES])


def test_terms_are_polys_fields_in_order() -> None:
    assert tuple(TERMS) == Poly.__struct_fields__


def test_an_exact_form_comes_back_to_the_last_byte() -> None:
    wanted = Poly(const=448.0, b=3.0, p=0.5, bp=172496.0, p2=2.0, bp2=57344.0)
    coefficients, exact = fit(SIZES, PREFILL_TERMS, sampled(wanted))
    assert exact.all()
    assert poly(coefficients[:, 0]) == wanted
    # 448 + 3·7 + 0.5·1000 + 172496·7000 + 2·10⁶ + 57344·7·10⁶
    assert wanted(batch=7, prompt=1000) == 448 + 21 + 500 + 1_207_472_000 + 2_000_000 + 401_408_000_000


def test_decode_forms_use_the_context() -> None:
    sizes = [Size(2, 64, 65), Size(2, 128, 129), Size(3, 64, 65), Size(3, 128, 129), Size(4, 256, 257)]
    wanted = Poly(const=8.0, b=57344.0, bc=28672.0)
    samples = np.array([[wanted(batch=s.batch, prompt=s.prompt, context=s.context)] for s in sizes])
    coefficients, exact = fit(sizes, DECODE_TERMS, samples)
    assert exact.all()
    assert poly(coefficients[:, 0]) == wanted


def test_a_form_that_is_no_polynomial_is_raised_above_every_sample() -> None:
    steps = np.array([[float(-(-s.prompt // 100) * 100 * s.batch)] for s in SIZES])  # padded to hundreds
    coefficients, exact = fit(SIZES, PREFILL_TERMS, steps)
    assert not exact.any()
    predicted = design(SIZES, list(TERMS)) @ coefficients
    assert (predicted >= steps - 1e-6).all()


def test_a_lower_form_is_dropped_and_crossing_forms_stay() -> None:
    low, high, steep = Poly(bp=4.0), Poly(b=1.0, bp=4.0), Poly(bp2=1.0)
    kept = {poly(c) for c in undominated(columns(low, high, steep)).T}
    assert kept == {high, steep}


def test_what_counts_is_lengths_of_one_and_more() -> None:
    # b·p is at least b when p is at least 1, although no coefficient of b·p exceeds b's.
    kept = {poly(c) for c in undominated(columns(Poly(b=1.0), Poly(bp=1.0))).T}
    assert kept == {Poly(bp=1.0)}


def test_a_form_may_matter_only_below_the_shortest_prompt() -> None:
    early, late = Poly(b=100.0), Poly(b=-1000.0, bp=50.0)
    assert undominated(columns(early, late)).shape[1] == 2
    assert [poly(c) for c in undominated(columns(early, late), 50).T] == [late]


@pytest.mark.parametrize("seed", range(5))
def test_the_highest_value_is_never_lost(seed: int) -> None:
    generator = np.random.default_rng(seed)
    forms = generator.integers(-3, 9, size=(len(TERMS), 40)).astype(float)
    kept = undominated(forms)
    sizes = [Size(*map(int, generator.integers(1, 50, size=3))) for _ in range(30)]
    rows = design(sizes, list(TERMS))
    assert kept.shape[1] < 40
    np.testing.assert_allclose((rows @ kept).max(axis=1), (rows @ forms).max(axis=1))
