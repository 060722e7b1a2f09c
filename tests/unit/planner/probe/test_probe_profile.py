"""Findings become a profile that loads; what is missing is left out with a sentence, never made up."""

from pathlib import Path

import msgspec
import pytest

from planner.cost.time_terms import cpu_engine
from planner.errors import ProfileError, RuntimeFailure
from planner.hardware.files import quantities
from planner.hardware.load import load
from planner.probe.findings import Findings
from planner.probe.fits import LineFit, Measurement
from planner.probe.profile import Probed, note, probed, to_toml
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Source

LINKS = [f"{way}.{key}" for way in ("host_to_device", "device_to_host", "peer") for key in (
    "pinned_bytes_per_s", "pageable_bytes_per_s", "latency_s"
)]  # fmt: skip

DTYPES = ("float32", "bfloat16", "float16")


def one(value: float, method: str = "a run") -> Measurement:
    return Measurement(value=value, spread=0.05, num_samples=7, method=method)


def findings(num_gpus: int) -> Findings:
    """Everything that a machine with so many GPUs shows."""
    found = Findings(facts={"num_cores": 8, "cpu_name": 'a "quoted" name', "num_gpus": num_gpus})
    found.quantities = {
        "host.installed_memory_bytes": one(64 * 2**30),
        "host.memory_bytes": one(60 * 2**30),
        "host.op_overhead_s": one(5e-5),
        "host.hook_overhead_s": one(2e-5),
        "host.tensor_move_overhead_s": one(4e-4),
        "host.flops_per_s.float32": one(4e11),
        "host.flops_per_s.bfloat16": one(2e12),
        "host.flops_per_s.float16": one(3e11),
        "host.gemv_bytes_per_s.float32": one(60e9, "by float32"),
        "host.gemv_bytes_per_s.bfloat16": one(50e9, "by bfloat16"),
        "host.gemv_bytes_per_s.float16": one(40e9, "by float16"),
        **{f"host.few_rows_flops_per_s.{dtype}.128": one(4e11) for dtype in DTYPES},
        **{f"host.few_rows_flops_per_s.{dtype}.8": one(3e10) for dtype in DTYPES},
        **{f"host.attention_bytes_per_s.{dtype}": one(5e9) for dtype in DTYPES},
        "cpu_thread_bytes_per_s.float32": one(12e9),
        "cpu_thread_bytes_per_s.bfloat16": one(6e9),
        "cpu_thread_bytes_per_s.float16": one(1e9),
        "disk.capacity_bytes": one(1e12),
        "disk.read_bytes_per_s": one(2e9),
        "disk.latency_s": one(8e-5),
    }
    if num_gpus:
        found.facts["gpu_name"] = "Some GPU 80GB"
        found.quantities |= {
            "gpu.memory_bytes": one(80e9),
            "gpu.context_bytes": one(7e8),
            "gpu.memory_bandwidth_bytes_per_s": one(3e12),
            "gpu.gemm_efficiency": one(0.8),
            "gpu.bandwidth_efficiency": one(0.9),
            "gpu.flops_per_s.float16": one(7e14),
        }
        found.quantities |= {
            path: one(1e-5 if path.endswith("_s") and "bytes" not in path else 5e10) for path in LINKS
        }
        found.quantities["fabric.bus_bytes_per_s"] = one(2e11)
        found.facts["fabric_kind"] = "nvlink"
    return found


def result_of(found: Findings) -> Probed:
    return probed(found, date="2026-01-02", versions={"torch": "2.11"})


def loaded(found: Findings, folder: Path) -> HardwareProfile:
    file = folder / "here.toml"
    file.write_text(to_toml(result_of(found)))
    return load(str(file))


@pytest.mark.parametrize("num_gpus", [0, 1, 4])
def test_a_complete_probe_is_a_profile(num_gpus: int, tmp_path: Path) -> None:
    profile = loaded(findings(num_gpus), tmp_path)
    assert profile.num_gpus == num_gpus
    assert (profile.gpu is None) == (num_gpus == 0)
    assert (profile.peer is not None) == (num_gpus > 1)
    assert (profile.fabric is not None) == (num_gpus > 1)
    assert profile.host.num_cores == 8
    assert profile.host.memory_bytes.value == 60 * 2**30
    assert {quantity.source for _, quantity in quantities(profile)} == {Source.MEASURED}
    assert profile.host.op_overhead_s.value == pytest.approx(5e-5)
    assert profile.host.op_overhead_s.source is Source.MEASURED
    assert "2026-01-02" in profile.host.op_overhead_s.note
    assert "spread 5.0%" in profile.host.op_overhead_s.note
    assert '"quoted"' in profile.description
    if profile.gpu is not None:
        assert profile.gpu.gemm_efficiency.source is Source.MEASURED
        assert profile.gpu.flops_per_s["float16"].value == pytest.approx(7e14)
    if profile.fabric is not None:
        assert profile.fabric.kind == "nvlink"


def test_steps_read_weights_at_the_rate_of_their_own_dtype(tmp_path: Path) -> None:
    host = loaded(findings(1), tmp_path).host
    assert {dtype: cpu_engine(host, dtype).bytes_per_s for dtype in host.gemv_bytes_per_s} == {
        "float32": 60e9,
        "bfloat16": 50e9,
        "float16": 40e9,
    }
    plain = msgspec.structs.replace(host, gemv_bytes_per_s={})
    # Of the dtype that weights have beside a GPU.
    assert cpu_engine(plain, "float16").bytes_per_s == 50e9


def test_products_of_few_rows_and_attention_keep_their_rates(tmp_path: Path) -> None:
    host = loaded(findings(1), tmp_path).host
    assert set(host.few_rows_flops_per_s) == set(host.attention_bytes_per_s) == set(DTYPES)
    engine = cpu_engine(host, "float16")
    assert engine.cache_bytes_per_s == 5e9
    # 2 bytes at 40 GB/s, 16 FLOPs at 30 GFLOP/s, 256 at 400.
    assert dict(engine.few_rows) == pytest.approx({1: 0.05e-9, 8: 16 / 30e9, 128: 0.64e-9})
    # In the file by increasing rows, in whatever order they were found.
    rows = [line.split(" ")[0] for line in (tmp_path / "here.toml").read_text().splitlines()]
    assert rows.index("8") + 1 == rows.index("128")
    plain = msgspec.structs.replace(host, few_rows_flops_per_s={}, attention_bytes_per_s={})
    assert cpu_engine(plain, "float16").cache_bytes_per_s == 40e9
    assert cpu_engine(plain, "float16").few_rows == ()


@pytest.mark.parametrize("rows", ["1", "0", "many", "2.5"])
def test_rows_that_are_none_are_refused(rows: str, tmp_path: Path) -> None:
    file = tmp_path / "here.toml"
    text = to_toml(result_of(findings(0)))
    file.write_text(text.replace("\n8 = ", f'\n"{rows}" = '))
    with pytest.raises(ProfileError, match="few_rows_flops_per_s"):
        load(str(file))


@pytest.mark.parametrize(
    "lost",
    [
        "gpu.memory_bytes",
        "gpu.context_bytes",
        "gpu.flops_per_s.float16",
        "host_to_device.pageable_bytes_per_s",
    ],
)
def test_a_gpu_of_which_too_little_is_known_is_left_out(lost: str, tmp_path: Path) -> None:
    found = findings(2)
    del found.quantities[lost]
    profile = loaded(found, tmp_path)
    assert profile.num_gpus == 0
    assert profile.host_to_device is None
    (sentence,) = [s for s in result_of(found).missing if "the profile has no GPU" in s]
    assert lost.removesuffix(".float16") in sentence


def test_gpus_that_cannot_reach_each_other_are_one(tmp_path: Path) -> None:
    found = findings(4)
    del found.quantities["peer.pinned_bytes_per_s"]
    profile = loaded(found, tmp_path)
    assert (profile.num_gpus, profile.peer, profile.fabric) == (1, None, None)
    assert any("1 of 4 GPUs" in sentence for sentence in result_of(found).missing)


def test_half_a_disk_is_none(tmp_path: Path) -> None:
    found = findings(0)
    del found.quantities["disk.read_bytes_per_s"]
    assert loaded(found, tmp_path).disk is None


def test_an_emulated_dtype_is_left_out_where_plans_would_run_in_it(tmp_path: Path) -> None:
    without = loaded(findings(0), tmp_path)
    for rates in ("flops_per_s", "gemv_bytes_per_s", "few_rows_flops_per_s", "attention_bytes_per_s"):
        assert set(getattr(without.host, rates)) == {"float32", "bfloat16"}
    (sentence,) = result_of(findings(0)).missing
    assert "float16 on the processor is left out" in sentence
    assert "1 GB/s in float16 and 12 GB/s in float32" in sentence
    assert without.host.memory_bandwidth_bytes_per_s.note.startswith("by float32")
    beside = loaded(findings(1), tmp_path)
    assert set(beside.host.flops_per_s) == {"float32", "bfloat16", "float16"}
    assert beside.host.memory_bandwidth_bytes_per_s.note.startswith("by bfloat16")


def test_without_a_processor_there_is_no_profile() -> None:
    found = findings(0)
    for path in [path for path in found.quantities if path.startswith("host.gemv")]:
        del found.quantities[path]
    found.missing.append("the processor could not be measured: it went away")
    with pytest.raises(RuntimeFailure, match="it went away"):
        result_of(found)


def test_without_a_word_of_what_is_free_a_share_of_the_memory_is_taken_off(tmp_path: Path) -> None:
    found = findings(0)
    del found.quantities["host.memory_bytes"]
    memory = loaded(found, tmp_path).host.memory_bytes
    assert 60 * 2**30 < memory.value < 64 * 2**30
    assert memory.source is Source.ASSUMED


def test_a_number_that_no_profile_may_hold_is_refused() -> None:
    found = findings(0)
    found.quantities["host.op_overhead_s"] = one(-1.0)
    with pytest.raises(RuntimeFailure, match="do not give a valid profile"):
        to_toml(result_of(found))


def test_a_measurement_that_fails_is_a_sentence() -> None:
    found = Findings()

    def broken(findings: Findings) -> None:
        findings.quantities["gpu.memory_bytes"] = one(1.0)
        raise RuntimeError("CUDA error: the card fell off the bus\nand a page of advice")

    found.attempt("the GPU's memory bandwidth", broken)
    assert list(found.series["seconds that each measurement took"]) == ["the GPU's memory bandwidth"]
    (sentence,) = found.missing
    assert sentence.startswith("the GPU's memory bandwidth could not be measured: RuntimeError: CUDA error")
    assert sentence.endswith("fell off the bus")


def test_findings_merge_and_lines_are_recorded() -> None:
    first, second = Findings(missing=["a"]), Findings(missing=["b"], facts={"num_gpus": 1})
    line = LineFit(latency_s=1e-5, bytes_per_s=5e10, error=0.02)
    second.record_line("host_to_device.pinned_bytes_per_s", line, {1: [1.0, 2.0], 2: [3.0]}, "copies")
    first.series, second.series = {"times": {"a": 1.0}}, {"times": {"b": 2.0}, "rates": {"c": 3.0}}
    first.merge(second)
    assert first.series == {"times": {"a": 1.0, "b": 2.0}, "rates": {"c": 3.0}}
    assert first.missing == ["a", "b"]
    assert first.quantities["host_to_device.pinned_bytes_per_s"].num_samples == 3
    assert first.quantities["host_to_device.pinned_bytes_per_s"].value == 5e10


def test_a_note_of_one_reading_speaks_of_no_spread() -> None:
    said = note(Measurement(value=1, spread=0, num_samples=1, method="read"), "2026-01-02", {"torch": "2.11"})
    assert said == "read; torch 2.11, 2026-01-02"
