"""Terms are recovered from rows that a perturbed profile made, and noise changes nothing."""

import math
from pathlib import Path

import numpy as np
import pytest

from planner.calibrate.fit import fit
from planner.calibrate.terms import Sample, terms_of
from planner.hardware.load import load
from tests.unit.planner.calibrate.made_rows import make_rows

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
ROWS = RESULTS / "2026-11-21-h100-probed-rows.jsonl"
PROFILE = load(str(RESULTS / "2026-11-21-h100-probed.toml"))
PINNED, GEMM = "host_to_device.pinned_bytes_per_s", "gpu.gemm_efficiency"


def test_perturbed_terms_are_recovered(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    terms = terms_of(PROFILE)
    truth = {PINNED: 0.7 * terms[PINNED], GEMM: 0.6 * terms[GEMM]}
    generator = np.random.default_rng(0)
    make_rows(ROWS, path, truth, lambda: math.exp(generator.normal(0, 0.01)))
    sample = Sample(PROFILE, [path])
    found = fit(sample.errors, sample.groups, sample.upper)
    values = sample.values(found.theta)
    for key, value in truth.items():
        assert values[key] == pytest.approx(value, rel=0.05), key
    assert found.after < 0.25 * found.before
    for key in set(terms) - set(truth):
        assert values[key] == pytest.approx(terms[key], rel=0.1), key


def test_rows_that_the_profile_made_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    generator = np.random.default_rng(1)
    make_rows(ROWS, path, {}, lambda: math.exp(generator.normal(0, 0.1)))
    sample = Sample(PROFILE, [path])
    found = fit(sample.errors, sample.groups, sample.upper)
    assert not found.theta.any()
    assert found.after == found.before == pytest.approx(0.1, rel=0.5)
    assert not any(trial.taken for trial in found.trials)
    assert len(found.trials) == len(sample.terms)
