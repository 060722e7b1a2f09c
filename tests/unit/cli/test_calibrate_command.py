"""`planner calibrate`: what it refuses."""

from pathlib import Path

import pytest

import cli.main

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ROWS, PROFILE = RESULTS / "2026-11-29-cpu-rows.jsonl", RESULTS / "2026-11-29-cpu.toml"


def test_rows_of_another_machine_are_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = RESULTS / "2026-11-21-h100-probed-rows.jsonl"
    out = tmp_path / "better.toml"
    assert cli.main.run(["calibrate", str(PROFILE), "--rows", str(rows), "--out", str(out)]) == 3
    assert "calibrate a profile with rows of its own machine" in capsys.readouterr().err
    assert not out.exists()
