"""What a user may type for a model, and the sentence that answers what cannot be used."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.errors import ModelError, UnknownNameError
from planner.models import hub
from planner.models.resolve import resolve
from planner.models.shipped import shipped_names


def _folder(path: Path, config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("name", ["gpt-j-6b", "GPT-J-6B", "EleutherAI/gpt-j-6B", "eleutherai/gpt-j-6b"])
def test_short_name_or_hub_id_of_a_shipped_model(name: str) -> None:
    spec = resolve(name)
    assert (spec.name, spec.origin, spec.hub_id) == ("gpt-j-6b", "shipped", "EleutherAI/gpt-j-6b")
    assert spec.config["n_layer"] == 28
    assert spec.folder is None


def test_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'gptj-6b'; the nearest are gpt-j-6b"):
        resolve("gptj-6b")


def test_name_like_nothing_shows_no_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'zzzzzzzz'\. Give a name"):
        resolve("zzzzzzzz")


@pytest.mark.parametrize("name", ["", " ", "/"])
def test_empty_names_are_refused(name: str) -> None:
    with pytest.raises((UnknownNameError, ModelError)):
        resolve(name)


def test_folder(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    spec = resolve(str(_folder(tmp_path / "mine", config)))
    assert (spec.name, spec.origin, spec.folder) == ("mine", "folder", (tmp_path / "mine").resolve())
    assert (spec.auto_class, spec.dtype, spec.model_type) == ("causal-lm", "bfloat16", "llama")
    assert spec.config == config
    assert spec.published is None


def test_shipped_name_wins_over_a_folder_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(tmp_path / "gpt2", {"model_type": "llama"})
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2").model_type == "gpt2"
    assert resolve("./gpt2").model_type == "llama"


def test_folder_of_two_names_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    _folder(tmp_path / "org" / "name", {"model_type": "llama"})
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").origin == "folder"


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no folder .*absent"):
        resolve(str(tmp_path / "absent"))


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        resolve(str(tmp_path))


def test_file_instead_of_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        resolve(str(_folder(tmp_path / "m", {}) / "config.json"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[1]", "holds a JSON list"),
        ("{}", "has no model_type"),
        ('{"model_type": ""}', "has no model_type"),
        ('{"model_type": 3}', "has no model_type"),
        ('{"model_type": "llama", "architectures": "LlamaForCausalLM"}', "must be a list"),
        ('{"model_type": "llama", "dtype": "float7"}', "unknown dtype 'float7'"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "quantized"),
        (
            '{"model_type": "bert", "architectures": ["BertForTokenClassification"]}',
            "does not model language",
        ),
    ],
)
def test_config_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        resolve(str(_folder(tmp_path / "m", text)))
    assert str(tmp_path) in str(caught.value)


def test_config_that_is_not_text(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m", "")
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="cannot read"):
        resolve(str(folder))


def test_remote_code_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "toy", "auto_map": {"AutoConfig": "a.B"}}
    folder = str(_folder(tmp_path / "m", config))
    with pytest.raises(ModelError, match="no 'toy'; read that code"):
        resolve(folder)
    assert resolve(folder, trust_remote_code=True).trust_remote_code


def test_code_that_transformers_has_taken_in_is_not_needed(tmp_path: Path) -> None:
    config = {"model_type": "phi3", "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}
    assert not resolve(str(_folder(tmp_path / "m", config))).trust_remote_code


def test_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(hub_id: str, revision: str | None) -> hub.HubConfig:
        asked.append((hub_id, revision))
        return hub.HubConfig('{"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}', "abc")

    monkeypatch.setattr(hub, "fetch_config", fetch)
    spec = resolve("google/mt5-small")
    again = resolve(spec.location, revision=spec.revision)
    assert asked == [("google/mt5-small", None), ("google/mt5-small", "abc")]
    assert again == spec
    assert (spec.origin, spec.hub_id, spec.auto_class) == ("hub", "google/mt5-small", "seq2seq-lm")


def test_hub_id_offline(tmp_path: Path) -> None:
    # In a process of its own: the client reads its environment when it is imported.
    code = (
        "from planner.errors import ModelError\n"
        "from planner.models.resolve import resolve\n"
        "try: resolve('nobody/nothing')\n"
        "except ModelError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "could not be reached" in done.stdout
    assert "nobody/nothing is not in the local cache: go online" in done.stdout.replace("\n", " ")


def test_hub_id_that_is_malformed() -> None:
    with pytest.raises(ModelError, match="is not a hub id"):
        resolve("a--b/c")


def test_no_framework_is_imported_for_names_and_folders(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m", {"model_type": "llama"})
    code = (
        "import sys\n"
        "from planner.models.resolve import resolve\n"
        f"resolve('bloom-176b'); resolve({str(folder)!r})\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_name_resolves(name: str) -> None:
    assert resolve(name).name == name
