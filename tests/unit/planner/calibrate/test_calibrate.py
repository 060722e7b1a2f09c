"""The fit on linear models, rows that are refused, and profiles as they are written again."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from planner.bench.rows import append, record_of
from planner.calibrate.fit import fit
from planner.calibrate.terms import Sample, numbers_of, terms_of, with_terms
from planner.calibrate.write import rewritten
from planner.errors import BadFileError, InvalidInputError, ProfileError
from planner.hardware.load import load
from planner.schema.hardware import HardwareProfile

from .made_rows import one_of_each

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
ROWS = RESULTS / "2026-11-21-h100-probed-rows.jsonl"
PROFILE_FILE = RESULTS / "2026-11-21-h100-probed.toml"
PROFILE = load(str(PROFILE_FILE))
PINNED, GEMM = "host_to_device.pinned_bytes_per_s", "gpu.gemm_efficiency"


def _linear(slopes: np.ndarray, offsets: np.ndarray) -> Callable[..., np.ndarray]:
    return lambda theta, rows: offsets[rows] - slopes[rows] @ theta


def test_noise_is_seldom_taken_for_a_term() -> None:
    taken = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        slopes = generator.uniform(0, 1, (10, 2, 5))
        # Noise about a model that is right; what all rows have in common would be a term.
        noise = generator.normal(0, 0.1, (10, 2))
        found = fit(_linear(slopes, noise), range(10), np.full(5, 9.0))
        taken += bool(found.theta.any())
    assert taken <= 4


def test_one_row_far_away_changes_nothing() -> None:
    slopes = np.ones((10, 2, 1))
    offsets = np.zeros((10, 2))
    offsets[3] = 1.0
    assert not fit(_linear(slopes, offsets), range(10), np.full(1, 9.0)).theta.any()


def test_a_factor_stays_below_its_limit() -> None:
    found = fit(_linear(np.ones((8, 2, 1)), np.full((8, 2), 0.9)), range(8), np.asarray([0.3]))
    assert found.theta[0] == pytest.approx(0.3)


def test_too_few_configurations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for row, plan in one_of_each(ROWS)[:3]:
        append(path, [record_of(plan), row])
    with pytest.raises(InvalidInputError, match="3 configurations"):
        Sample(PROFILE, [path])
    with pytest.raises(ValueError, match="cross-validated"):
        fit(_linear(np.ones((3, 2, 1)), np.ones((3, 2))), range(3), np.ones(1))


def test_rows_of_another_machine_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="its own machine"):
        Sample(load("t4"), [ROWS])


@pytest.mark.parametrize("change", [{"prefill_s": -1.0}, {"prefill_s": 0.0}, {"decode_s": (0.1, math.nan)}])
def test_a_time_that_is_none_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for row, plan in one_of_each(ROWS):
        assert row.measured is not None
        damaged = msgspec.structs.replace(row.measured, **change)
        append(path, [record_of(plan), msgspec.structs.replace(row, measured=damaged)])
    # JSON has no NaN: it is written as null, which is no number.
    with pytest.raises(BadFileError, match=r"is not a benchmark row: Expected `float"):
        Sample(PROFILE, [path])


def test_a_row_of_another_model_than_its_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row, plan = one_of_each(ROWS)[0]
    append(path, [record_of(plan), msgspec.structs.replace(row, model="gpt2")])
    with pytest.raises(BadFileError, match="is of gpt2, and its plan is of"):
        Sample(PROFILE, [path])


def test_why_rows_were_left_out_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    (row, plan), (other, elsewhere) = one_of_each(ROWS)[:2]
    unknown = msgspec.structs.replace(
        elsewhere, model=msgspec.structs.replace(elsewhere.model, name="nosuch", source="nosuch")
    )
    append(path, [record_of(plan), msgspec.structs.replace(row, status="out_of_memory", measured=None)])
    record = record_of(unknown)
    append(path, [record, msgspec.structs.replace(other, model="nosuch", plan_sha256=record.sha256)])
    with pytest.raises(InvalidInputError) as caught:
        Sample(PROFILE, [path])
    assert "0 configurations" in str(caught.value)
    assert "1 row did not run" in str(caught.value)
    assert "1 row cannot be predicted (the plan's model nosuch is not where it was planned from" in str(
        caught.value
    )
    assert "unknown model 'nosuch'" in str(caught.value)


def _reloaded(text: str, folder: Path) -> HardwareProfile:
    path = folder / "new.toml"
    path.write_text(text)
    return load(str(path))


def test_only_the_changed_number_is_written(tmp_path: Path) -> None:
    text = PROFILE_FILE.read_text()
    new = rewritten(text, {PINNED: 4e10}, "calibrated on 3 rows")
    changed = [pair for pair in zip(text.splitlines(), new.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1
    before, link = load(str(PROFILE_FILE)).host_to_device, _reloaded(new, tmp_path).host_to_device
    assert before is not None
    assert link is not None
    assert link.pinned_bytes_per_s.value == 4e10
    assert link.pinned_bytes_per_s.source == "measured"
    old = f"{before.pinned_bytes_per_s.value:.5g}"
    assert link.pinned_bytes_per_s.note.startswith(f"calibrated on 3 rows; before: {old}, pinned copies")
    assert rewritten(text, {}, "nothing") == text


def test_a_number_that_was_a_default_is_added(tmp_path: Path) -> None:
    lines = PROFILE_FILE.read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("gemm_efficiency"))
    gpu = _reloaded(rewritten(text, {GEMM: 0.5}, "calibrated"), tmp_path).gpu
    assert gpu is not None
    assert gpu.gemm_efficiency.value == 0.5
    with pytest.raises(ProfileError, match=r"no table \[gpu\]"):
        rewritten('description = "none"\n', {GEMM: 0.5}, "calibrated")


def test_a_rate_by_dtype_is_changed_and_written(tmp_path: Path) -> None:
    key = "host.gemv_bytes_per_s.float16"
    table = '\n[host.gemv_bytes_per_s]\nfloat16 = { value = 2e10, source = "measured", note = "probed" }\n'
    text = PROFILE_FILE.read_text() + table
    profile = _reloaded(text, tmp_path)
    assert terms_of(profile)[key] == 2e10
    assert with_terms(profile, {key: 3e10}).host.gemv_bytes_per_s["float16"].value == 3e10
    # A plan made before the profile had it is priced without it.
    assert with_terms(PROFILE, {key: 3e10}) == PROFILE
    rate = _reloaded(rewritten(text, {key: 3e10}, "calibrated"), tmp_path).host.gemv_bytes_per_s["float16"]
    assert rate.value == 3e10
    assert rate.note == "calibrated; before: 2e+10, probed"


def test_what_few_rows_reach_goes_with_what_many_do() -> None:
    key, few = "host.flops_per_s.bfloat16", "host.few_rows_flops_per_s.bfloat16"
    profile = load(str(RESULTS / "2026-11-29-cpu.toml"))
    rates = profile.host.few_rows_flops_per_s["bfloat16"]
    assert sorted(rates) == [4, 8, 32, 128, 512]
    wanted = {key: terms_of(profile)[key] / 2}
    assert numbers_of(profile, wanted) == wanted | {
        f"{few}.{rows}": pytest.approx(rate.value / 2) for rows, rate in rates.items()
    }
    host = with_terms(profile, wanted).host
    assert host.few_rows_flops_per_s["bfloat16"][8].value == pytest.approx(rates[8].value / 2)
    assert host.few_rows_flops_per_s["float32"] == profile.host.few_rows_flops_per_s["float32"]
    # The H100's was probed before few rows were.
    assert numbers_of(PROFILE, {key: 1e12}) == {key: 1e12}
