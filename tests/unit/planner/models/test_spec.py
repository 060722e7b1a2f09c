"""The configuration hash, the choice of auto class, the stored dtype, and the shipped data's consistency."""

from importlib import resources
from typing import Any

import pytest

from planner.models.config import auto_class_of, dtype_of
from planner.models.shipped import shipped_config, shipped_name, shipped_names, shipped_spec
from planner.models.spec import PublishedCount, config_sha256
from planner.schema.quantity import Source

_CONFIG: dict[str, Any] = {"model_type": "x", "hidden_size": 8, "text_config": {"layers": 2}}


@pytest.mark.parametrize(
    "extra",
    [
        {"transformers_version": "4.1"},
        {"_name_or_path": "somewhere"},
        {"torch_dtype": "float16"},
        {"dtype": "bfloat16"},
        {"architectures": ["XForCausalLM"]},
        {"text_config": {"layers": 2, "dtype": "float16", "_attn": "x"}},
    ],
)
def test_bookkeeping_does_not_change_the_hash(extra: dict[str, Any]) -> None:
    assert config_sha256(_CONFIG | extra, "causal-lm") == config_sha256(_CONFIG, "causal-lm")


@pytest.mark.parametrize(
    "extra", [{"hidden_size": 9}, {"text_config": {"layers": 3}}, {"use_cache": False}, {"new": None}]
)
def test_anything_else_changes_the_hash(extra: dict[str, Any]) -> None:
    assert config_sha256(_CONFIG | extra, "causal-lm") != config_sha256(_CONFIG, "causal-lm")


def test_hash_depends_on_the_class_and_not_on_the_order() -> None:
    backwards = dict(reversed(_CONFIG.items()))
    assert config_sha256(backwards, "causal-lm") == config_sha256(_CONFIG, "causal-lm")
    assert config_sha256(_CONFIG, "masked-lm") != config_sha256(_CONFIG, "causal-lm")
    assert len(config_sha256(_CONFIG, "causal-lm")) == 64


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"model_type": "opt", "architectures": ["OPTForCausalLM"]}, "causal-lm"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "causal-lm"),
        ({"model_type": "gpt2", "architectures": ["GPT2Model"]}, "causal-lm"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "seq2seq-lm"),
        ({"model_type": "t5", "architectures": ["T5WithLMHeadModel"]}, "seq2seq-lm"),
        ({"model_type": "xlm", "architectures": ["XLMWithLMHeadModel"]}, "masked-lm"),
        ({"model_type": "bart", "is_encoder_decoder": True, "architectures": ["BartModel"]}, "seq2seq-lm"),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, "causal-lm"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "masked-lm"),
        ({"model_type": "bert", "architectures": ["BertForPreTraining"]}, "masked-lm"),
        ({"model_type": "roberta", "is_decoder": True}, "causal-lm"),
        ({"model_type": "roberta"}, "masked-lm"),
        ({"model_type": "mistral"}, "causal-lm"),
        ({"model_type": "mistral", "architectures": None}, "causal-lm"),
    ],
)
def test_auto_class(config: dict[str, Any], expected: str) -> None:
    assert auto_class_of(config, "test") == expected


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": None, "torch_dtype": "float32"}, "float32"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "auto"}, None),
        ({}, None),
    ],
)
def test_stored_dtype(config: dict[str, Any], expected: str | None) -> None:
    assert dtype_of(config, "test") == expected


def test_a_count_is_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        PublishedCount(num_parameters=0, source=Source.PUBLISHED, where="x")


def test_table_and_files_name_the_same_models() -> None:
    files = resources.files("planner.models") / "shipped"
    assert {f.name.removesuffix(".json") for f in files.iterdir()} == set(shipped_names())


def test_the_promised_models_are_there() -> None:
    wanted = {
        "gpt2",
        "gpt2-xl",
        "gpt-neo-2.7b",
        "gpt-j-6b",
        "gpt-neox-20b",
        "opt-125m",
        "opt-350m",
        "opt-1.3b",
        "opt-2.7b",
        "opt-6.7b",
        "opt-13b",
        "opt-30b",
        "opt-66b",
        "opt-175b",
        "bloom-560m",
        "bloom-7b1",
        "bloom-176b",
        "llama-2-7b",
        "llama-2-13b",
        "llama-2-70b",
        "llama-3-8b",
        "llama-3-70b",
        "llama-3.1-405b",
        "mistral-7b",
        "mixtral-8x7b",
        "falcon-7b",
        "falcon-40b",
        "phi-3-mini",
        "qwen2.5-7b",
        "qwen2.5-72b",
        "qwen3-30b-a3b",
        "gemma-2-9b",
        "t5-v1.1-small",
        "t5-v1.1-xxl",
        "bert-large",
    }
    assert wanted <= set(shipped_names())


def test_hub_ids_and_hashes_are_distinct() -> None:
    specs = [shipped_spec(name) for name in shipped_names()]
    assert len({spec.config_sha256 for spec in specs}) == len(specs)
    assert len({spec.hub_id for spec in specs if spec.hub_id}) == sum(
        spec.hub_id is not None for spec in specs
    )


def test_every_count_says_where_it_is_from() -> None:
    for name in shipped_names():
        published = shipped_spec(name).published
        assert published is not None
        assert published.where
        assert published.source in {Source.PUBLISHED, Source.ASSUMED}
        assert published.source is Source.PUBLISHED or published.note


def test_a_config_may_be_changed_by_its_reader() -> None:
    shipped_config("gpt2")["n_layer"] = 1
    assert shipped_config("gpt2")["n_layer"] == 12


def test_shipped_name_of_nothing() -> None:
    assert shipped_name("gpt-9") is None
