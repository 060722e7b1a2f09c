"""`planner calibrate`: a new profile with what the rows ask for, and nothing else in it changed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import cli.main
from planner.calibrate.terms import numbers_of, terms_of
from planner.hardware.files import quantities
from planner.hardware.load import load
from tests.unit.planner.calibrate.made_rows import make_rows

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ROWS, PROFILE = RESULTS / "2026-11-29-cpu-rows.jsonl", RESULTS / "2026-11-29-cpu.toml"


def test_a_processor_that_multiplies_slower_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = load(str(PROFILE))
    truth = {
        f"host.flops_per_s.{dtype}": 0.5 * machine.host.flops_per_s[dtype].value
        for dtype in ("float32", "bfloat16")
    }
    generator = np.random.default_rng(0)
    make_rows(ROWS, tmp_path / "rows.jsonl", truth, lambda: math.exp(generator.normal(0, 0.01)))
    out = tmp_path / "better.toml"
    words = ["calibrate", str(PROFILE), "--rows", str(tmp_path / "rows.jsonl"), "--out", str(out), "--json"]
    assert cli.main.run(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["after"] < said["before"]
    expected = numbers_of(machine, truth)
    assert said["changed"] == {path: pytest.approx(value, rel=0.15) for path, value in expected.items()}
    before, after = dict(quantities(machine)), dict(quantities(load(str(out))))
    assert {path for path in before if after[path] != before[path]} == set(expected)
    for path in expected:
        assert after[path].value == pytest.approx(said["changed"][path], rel=1e-4)
        assert after[path].note.startswith("calibrated on 8 rows of 8 configurations measured 2026-11-29")


def test_the_table_says_what_was_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_rows(ROWS, tmp_path / "rows.jsonl", {}, lambda: 1.0)
    out = tmp_path / "same.toml"
    words = ["calibrate", str(PROFILE), "--rows", str(tmp_path / "rows.jsonl"), "--out", str(out)]
    assert cli.main.run(words) == 0
    shown = capsys.readouterr().out
    for key in terms_of(load(str(PROFILE))):
        assert f" {key} " in shown
    assert "0 of 12 terms changed; written:" in shown
    assert out.read_text() == PROFILE.read_text()
