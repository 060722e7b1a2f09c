"""`reshard --roles`: a family without a table is cut; what makes no sense is one sentence, and status 3."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.commands.roles import command as roles_command
from cli.program import run_program
from reshard.roles import FILE, digest, read
from tests.integration.reshard.reshard_roles_cases import CASES, build, oracle, write
from tests.integration.reshard.variants import assert_equal, load

from .conftest import Program

SETTINGS, ROLES = CASES["biogpt"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roles") / "biogpt"
    build("biogpt", folder, **SETTINGS)
    return folder


@pytest.fixture
def biogpt(built: Path, tmp_path: Path) -> Path:
    (tmp_path / "biogpt").symlink_to(built)
    return tmp_path / "biogpt"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(ROLES, tmp_path / "roles.json")


def test_without_roles_the_family_is_unknown(biogpt: Path, program: Program) -> None:
    ran = program(biogpt, "--tp", "2")
    assert ran.status == 3
    says = " ".join(ran.err.split())
    assert "model type 'biogpt' is unknown" in says
    assert "derive a roles file with `planner roles` and give it as --roles" in says


def test_cut_recut_merged_and_verified(biogpt: Path, file: Path, program: Program, tmp_path: Path) -> None:
    ran = program(biogpt, "--tp", "2", "--roles", file)
    assert (ran.status, ran.err) == (0, "")
    says = f"cut by roles: 20 of {len(load(biogpt))} tensors are shared out, as {FILE} beside them says"
    assert says in " ".join(ran.out.split())
    original = load(biogpt)
    for rank in (0, 1):
        found = load(tmp_path / "biogpt-tp2", f"*-rank-{rank:02d}-*")
        assert_equal(found, oracle(ROLES, original, 2, rank))
    assert json.loads((tmp_path / "biogpt-tp2" / "reshard.json").read_text())["roles"] == digest(ROLES)
    assert program(tmp_path / "biogpt-tp2", "--verify", "--against", biogpt).status == 0
    # Neither a merge nor another degree needs the file again.
    assert program(tmp_path / "biogpt-tp2", "--tp", "3", "--output", tmp_path / "three").status == 0
    assert_equal(load(tmp_path / "three", "*-rank-02-*"), oracle(ROLES, original, 3, 2))
    assert program(tmp_path / "three", "--format", "huggingface", "--output", tmp_path / "merged").status == 0
    assert_equal(load(tmp_path / "merged"), original)


def test_dry_run_asks_with_the_roles(biogpt: Path, file: Path, program: Program, tmp_path: Path) -> None:
    ran = program(biogpt, "--tp", "2,4", "--roles", file, "--dry-run", "--json")
    assert ran.status == 0
    answers = {(a["format"], a["tp_size"]): a["is_possible"] for a in ran.json["loaders"]}
    assert {key for key, is_possible in answers.items() if is_possible} == {
        ("safetensors", 2),
        ("safetensors", 4),
    }
    boxes = {t["name"]: [span["box"] for span in t["targets"]] for t in ran.json["byte_map"]}
    assert boxes["biogpt.layers.0.fc1.bias"] == [
        [[0, 18]],
        [[18, 36]],
        *[[[r * 9, r * 9 + 9]] for r in range(4)],
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["biogpt", "roles.json"]


_BIAS = "biogpt.layers.*.fc1.bias"


@pytest.mark.parametrize(
    "change, says",
    [
        ({"schema_version": 2}, "schema_version 2, and this release reads 1"),
        ({"heads": 12}, "unknown field `heads`"),
        ({"model_type": "opt"}, "of a 'opt' model, and the checkpoint is of a 'biogpt' one"),
        ({"bias_once": []}, "say nothing of these"),
        ({"weights": {"biogpt.layers.9.fc1.weight": {"dim": 0, "groups": [[[0, 36]]]}}}, "layers.9.fc1"),
        ({"weights": {_BIAS: {"dim": 0, "groups": [[[0, 9]], [[8, 36]]]}}}, "index 8 of"),
        ({"weights": {_BIAS: {"dim": 0, "groups": [[[0, 9]], [[9, 37]]]}}}, "[9, 37)"),
        ({"weights": {_BIAS: {"dim": 0, "groups": [[[0, 36]]]}}}, "degrees that work: 1"),
    ],
)  # fmt: skip
def test_bad_files_are_a_sentence(
    change: dict[str, Any], says: str, biogpt: Path, file: Path, program: Program, tmp_path: Path
) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    ran = program(biogpt, "--tp", "2", "--roles", file)
    assert ran.status == 3
    assert says in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["biogpt", "roles.json"]


def test_degrees_formats_and_options_that_make_no_sense(
    biogpt: Path, file: Path, program: Program, tmp_path: Path
) -> None:
    ran = program(biogpt, "--tp", "5", "--roles", file)
    assert ran.status == 3
    assert "tp_size=5; degrees that work: 1, 2, 3, 4, 6, 12" in " ".join(ran.err.split())
    ran = program(biogpt, "--tp", "2", "--roles", file, "--format", "vllm")
    assert ran.status == 3
    assert "--roles: vllm is cut by rules of its own" in " ".join(ran.err.split())
    assert program(biogpt, "--tp", "2", "--roles", tmp_path / "nowhere.json").status == 2
    ran = program(biogpt, "--verify", "--roles", file)
    assert ran.status == 2
    assert "--roles makes no sense with it" in ran.err


def test_what_the_planner_derives_is_what_reshard_takes(
    biogpt: Path, program: Program, tmp_path: Path
) -> None:
    derived = tmp_path / "derived.json"
    assert run_program(roles_command, "planner roles", ["--model", str(biogpt), "--out", str(derived)]) == 0
    assert read(derived).bias_once == ROLES.bias_once
    for name, weight in ROLES.weights.items():
        assert read(derived).weights[name] == weight
    assert program(biogpt, "--tp", "3", "--roles", derived, "--output", tmp_path / "three").status == 0
    original = load(biogpt)
    for rank in range(3):
        found = load(tmp_path / "three", f"*-rank-{rank:02d}-*")
        assert_equal(found, oracle(ROLES, original, 3, rank))
