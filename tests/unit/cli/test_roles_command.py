"""How `planner roles` shows what was derived, on a hand-made derivation."""

import json
from pathlib import Path

import pytest

import cli.main
from cli.commands import roles as roles_command
from planner.tensor_parallel.partition_report import Derivation, PartitionReport, WeightLine
from reshard.roles import Roles, WeightRoles, decode

_UP = "transformer.h.*.self_attention.query_key_value.weight"
_DOWN = "transformer.h.*.self_attention.dense.weight"
_HALVES = (((0, 4),), ((4, 8),))


@pytest.fixture(autouse=True)
def _hand_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report = PartitionReport(
        model_class="BloomForCausalLM",
        lines=(
            WeightLine(name=_UP, role="column", dim=0, num_groups=112, sharded=0.75, meets=_DOWN),
            WeightLine(name=_DOWN, role="row", dim=1, num_groups=112, sharded=1.0, meets=_DOWN),
        ),
        bias_once=("transformer.h.*.self_attention.dense.bias",),
        replicated=(_UP,),
        constants=("transformer.h.*.self_attention",),
        policy={"BloomBlock": ("self_attention.dense",)},
        unknown=("aten.strange",),
    )
    weights = {_UP: WeightRoles(dim=0, groups=_HALVES), _DOWN: WeightRoles(dim=1, groups=_HALVES)}
    file = Roles(model_type="bloom", weights=weights)
    monkeypatch.setattr(roles_command, "derivation", lambda spec: Derivation(report=report, file=file))


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["roles", "--model", "bloom-176b"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    text = " ".join(output.split())
    assert "column 0 112 75% ….dense.weight" in text
    assert "row 1 112 100%" in text
    assert "injection policy: BloomBlock: self_attention.dense" in text
    assert "biases added once, after the all-reduce: transformer.h.*.self_attention.dense.bias" in text
    assert f"partly replicated, so that others can be sharded: {_UP}" in text
    assert "contain a tensor of heads that is not a parameter: transformer.h.*.self_attention" in text
    assert "operations without a rule, whose inputs are not sharded: aten.strange" in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["roles", "--model", "bloom-176b", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [line["num_groups"] for line in report["lines"]] == [112, 112]
    assert report["policy"] == {"BloomBlock": ["self_attention.dense"]}


def test_out_is_the_file_that_reshard_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "roles.json"
    assert cli.main.run(["roles", "--model", "bloom-176b", "--out", str(out)]) == 0
    assert f"Wrote{out}." in "".join(capsys.readouterr().out.split())
    assert decode(out.read_bytes(), "it").weights[_DOWN].groups == _HALVES


def test_an_unknown_model_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main.run(["roles", "--model", "bloom-176c"]) == 3
    assert "bloom-176b" in capsys.readouterr().err
