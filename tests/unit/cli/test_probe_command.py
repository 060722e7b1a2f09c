"""What `planner probe` shows of what it found."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.commands.probe import _show, command
from planner.errors import InvalidInputError
from planner.probe.fits import Measurement
from planner.probe.profile import Probed


def test_every_number_is_shown_in_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    def one(value: float) -> Measurement:
        return Measurement(value=value, spread=0.034, num_samples=5, method="copies")

    result = Probed(
        description="1 × a GPU, 8 cores",
        tables={
            "gpu": {"memory_bytes": one(16 * 2**30), "gemm_efficiency": one(0.8123), "name": "a GPU"},
            "gpu.flops_per_s": {"float16": one(6.5e13)},
            "host_to_device": {"pinned_bytes_per_s": one(12.3e9), "latency_s": one(1.5e-5)},
            "host": {"num_cores": 8},
        },
        num_gpus=1,
        missing=("the disk was not measured, as requested",),
        series={},
        date="2026-01-02",
        versions={},
    )
    _show(result)
    shown = capsys.readouterr().out
    for text in (
        "16.0 GiB",
        "0.812",
        "65.0 TFLOP/s",
        "12.3 GB/s",
        "15.0 µs",
        "3%",
        "not measured, as requested",
    ):
        assert text in shown
    assert "num_cores" not in shown


@pytest.mark.parametrize(
    "out, said",
    [
        ("here", "here.toml"),
        ("/proc/here.toml", "cannot write the profile here.toml into /proc"),
        ("{file}/here.toml", "cannot write the profile here.toml into {file}"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    out: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    result = CliRunner().invoke(command, ["--out", out.format(file=file)])
    assert isinstance(result.exception, InvalidInputError)
    assert said.format(file=file) in str(result.exception)
    assert "measuring" not in result.output
    assert list(tmp_path.iterdir()) == [file]


def test_a_timeout_is_above_zero() -> None:
    assert CliRunner().invoke(command, ["--timeout", "0"]).exit_code == 2
