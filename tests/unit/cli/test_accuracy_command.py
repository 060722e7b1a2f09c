"""`planner accuracy` as it is called."""

from pathlib import Path

import pytest

import cli.main


@pytest.mark.parametrize("plot", ["scatter.pdf", "none/scatter.png"])
def test_a_plot_that_cannot_be_written_is_refused_before_the_table_is(
    plot: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "accuracy.md"
    assert cli.main.run(["accuracy", "--out", str(out), "--plot", str(tmp_path / plot)]) == 3
    assert "must be a .png or .svg file in an existing folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
