"""Every shipped configuration, built without weights, counted against the published number."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.initialization import no_init_weights

from planner.errors import ModelError
from planner.models.build import build
from planner.models.config import auto_class_of
from planner.models.resolve import resolve
from planner.models.shipped import shipped_names, shipped_spec
from planner.models.spec import ModelSpec, config_sha256


def _meta_model(spec: ModelSpec) -> Any:
    config, model_class = build(spec)
    with torch.device("meta"), no_init_weights():
        model = model_class._from_config(config)  # type: ignore[attr-defined]
        model.tie_weights()
    return model


@functools.cache
def _num_parameters(name: str) -> int:
    return sum(p.numel() for p in _meta_model(shipped_spec(name)).parameters())


@pytest.mark.parametrize("name", shipped_names())
def test_parameters_equal_the_published_count(name: str) -> None:
    published = shipped_spec(name).published
    assert published is not None
    assert _num_parameters(name) == published.num_parameters


def test_counts_by_hand() -> None:
    # GPT-J: 28 layers of 4 h² attention, 8 h² + 5 h MLP, 2 h norm; embedding V·h; norm; head V·h + V.
    h, v = 4096, 50400
    assert _num_parameters("gpt-j-6b") == 28 * (12 * h * h + 5 * h + 2 * h) + v * h + 2 * h + v * h + v
    # BLOOM: 70 layers of 12 h² weights, 9 h MLP and attention biases (3 + 1 + 4 + 1) and 4 h norms; two more
    # norms (after the embedding and at the end); one tied embedding.
    h, v = 14336, 250880
    assert _num_parameters("bloom-176b") == 70 * (12 * h * h + 13 * h) + 4 * h + v * h
    # Llama-3.1-405B: query and output h², key and value 8/128 of that, three MLP matrices; two untied tables.
    h, f, v = 16384, 53248, 128256
    layer = 2 * h * h + 2 * h * (h // 16) + 3 * h * f + 2 * h
    assert _num_parameters("llama-3.1-405b") == 126 * layer + h + 2 * v * h
    # OPT-13B, whose exact count is published nowhere: biases 4 h + 5 h, norms 4 h; positions 2048 + 2.
    h, v = 5120, 50272
    assert _num_parameters("opt-13b") == 40 * (12 * h * h + 13 * h) + 2 * h + v * h + 2050 * h
    # Falcon-7B: one key and value head of 64; no biases; norms with bias; the head is the embedding.
    h, v = 4544, 65024
    assert _num_parameters("falcon-7b") == 32 * (h * (h + 128) + h * h + 8 * h * h + 2 * h) + 2 * h + v * h


def test_head_of_t5_1_1_is_a_tensor_of_its_own() -> None:
    model = _meta_model(shipped_spec("t5-v1.1-small"))
    assert model.lm_head.weight is not model.shared.weight
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert type(model).__name__ == "T5ForConditionalGeneration"
    assert not model.config.scale_decoder_outputs


def test_head_of_first_t5_stays_tied() -> None:
    config = {k: v for k, v in shipped_spec("t5-v1.1-small").config.items() if k != "tie_word_embeddings"}
    model = _meta_model(_spec(config | {"feed_forward_proj": "relu"}))
    assert model.lm_head.weight is model.shared.weight
    assert model.config.scale_decoder_outputs


@pytest.mark.parametrize(
    "name, class_name",
    [
        ("opt-125m", "OPTForCausalLM"),
        ("t5-v1.1-xxl", "T5ForConditionalGeneration"),
        ("bert-large", "BertForMaskedLM"),
        ("qwen3-30b-a3b", "Qwen3MoeForCausalLM"),
    ],
)
def test_class(name: str, class_name: str) -> None:
    _, model_class = build(shipped_spec(name))
    assert model_class.__name__ == class_name


def test_unknown_model_type_is_named() -> None:
    with pytest.raises(ModelError, match="no model_type 'gpt_9'"):
        build(_spec({"model_type": "gpt_9"}))


def test_family_without_such_a_class_is_named() -> None:
    with pytest.raises(ModelError, match="no causal-lm class for model_type 'vit'"):
        build(_spec({"model_type": "vit"}))


def test_values_that_transformers_refuses() -> None:
    with pytest.raises(ModelError, match="transformers refuses the configuration"):
        build(_spec({"model_type": "opt", "hidden_size": "wide"}))


def test_folder_saved_by_transformers(tmp_path: Path) -> None:
    config, _ = build(shipped_spec("gpt2"))
    config.save_pretrained(tmp_path)
    rebuilt, model_class = build(resolve(str(tmp_path)))
    assert model_class.__name__ == "GPT2LMHeadModel"
    assert rebuilt.n_layer == 12


def test_infinity_survives_a_folder_saved_by_transformers(tmp_path: Path) -> None:
    """JSON has no infinity; Mamba's configuration has."""
    config = transformers.Mamba2Config(num_heads=8, head_dim=16, hidden_size=64, num_hidden_layers=2)
    config.architectures = ["Mamba2ForCausalLM"]
    config.save_pretrained(tmp_path)
    assert "Infinity" in (tmp_path / "config.json").read_text()
    rebuilt, model_class = build(resolve(str(tmp_path)))
    assert model_class.__name__ == "Mamba2ForCausalLM"
    assert rebuilt.time_step_limit[1] == float("inf")


_REMOTE_CONFIG = """
from transformers import PreTrainedConfig
class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    hidden_size: int = 4
"""
_REMOTE_MODEL = """
from torch import nn
from transformers import PreTrainedModel
from .configuration_toy import ToyConfig
class ToyForCausalLM(PreTrainedModel):
    config_class = ToyConfig
    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.hidden_size, 3)
        self.post_init()
"""


def test_remote_code_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "toymodel"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "toy", "hidden_size": 4, "architectures": ["ToyForCausalLM"], "auto_map": {'
        '"AutoConfig": "configuration_toy.ToyConfig", "AutoModelForCausalLM": "modeling_toy.ToyForCausalLM"}}'
    )
    (folder / "configuration_toy.py").write_text(_REMOTE_CONFIG)
    (folder / "modeling_toy.py").write_text(_REMOTE_MODEL)
    with pytest.raises(ModelError, match="allow it with trust_remote_code"):
        resolve(str(folder))
    model = _meta_model(resolve(str(folder), trust_remote_code=True))
    assert sum(p.numel() for p in model.parameters()) == 4 * 3 + 3


def _spec(config: dict[str, Any]) -> ModelSpec:
    auto_class = auto_class_of(config, "test")
    return ModelSpec(
        name="test",
        origin="folder",
        config=config,
        config_sha256=config_sha256(config, auto_class),
        auto_class=auto_class,
    )
