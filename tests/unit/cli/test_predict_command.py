"""`planner predict` as it is called."""

import json

import pytest

import cli.main


def test_what_does_not_fit_is_one_json_document_a_sentence_and_status_1(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("maps") / "map.json"
    path.write_text(json.dumps({"": 0}))
    words = ["predict", "--hardware", "t4", "--model", "opt-30b", "--device-map", str(path)]
    assert cli.main.run([*words, "--json"]) == 1
    out, err = capsys.readouterr()
    plan = json.loads(out)
    gpu = plan["prediction"]["memory"]["gpu:0"]["decode"]
    assert gpu["weights"] > gpu["capacity"]
    assert err.startswith("planner: this map does not fit at batch 1: ")
    assert err.endswith(" short on gpu:0\n")
    assert cli.main.run(words) == 1
    assert "GiB short on gpu:0" in capsys.readouterr().err


def test_a_given_map_has_one_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--hardware", "t4", "--model", "gpt2", "--device-map", "auto", "--dtype", "any"]
    assert cli.main.run(words) == 3
    assert "name one of float32, float16, bfloat16" in capsys.readouterr().err
