"""`planner compare` as it is called: its table, and its exit status."""

import json

import pytest

import cli.main


def test_a_model_that_fits_nowhere_is_a_negative_result(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--model", "bloom-176b", "--hardware", "g4dn.xlarge,v100-16g"]
    assert cli.main.run([*arguments, "--json"]) == 1
    machines = json.loads(capsys.readouterr().out)
    assert {one["hardware"] for one in machines} == {"g4dn.xlarge", "v100-16g"}
    assert all("does not fit" in one["reason"] for one in machines)
    assert (
        cli.main.run(["compare", "--model", "bert-large", "--hardware", "t4,v100-16g", "--batch", "1"]) == 0
    )


@pytest.mark.parametrize("names", ["", ",", " , "])
def test_no_machine_at_all_is_bad_input(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["compare", "--model", "bert-large", "--hardware", names]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "no machine to compare" in err


def test_a_small_price_keeps_its_digits_and_a_masked_model_has_no_new_tokens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["compare", "--model", "bert-large", "--hardware", "g4dn.xlarge", "--batch", "64"]
    assert cli.main.run(arguments) == 0
    out = capsys.readouterr().out
    assert "new tokens" not in out
    assert cli.main.run([*arguments, "--json"]) == 0
    (machine,) = json.loads(capsys.readouterr().out)
    price = machine["usd_per_hour"] / 3600 / machine["tokens_per_s"] * 1e6
    assert 0 < price < 0.01
    assert f"{price:.3g}" in out
