"""The tables: strict, one per family, and complete for every tensor of every fixture."""

import json
import tomllib
from importlib import resources
from typing import Any, get_args

import msgspec
import pytest

from fixtures.families import FAMILIES
from reshard.architectures import Architecture, Module, families, for_model_type
from reshard.architectures.schema import Role
from reshard.errors import DamagedFileError
from reshard.model import Geometry, parse_model

#: Every family that the tool promises.
PROMISED = [
    "gptj", "gpt2", "gpt_neo", "gpt_neox", "bloom", "opt", "llama", "mistral", "mixtral", "qwen2", "qwen3",
    "qwen3_moe", "gemma2", "gemma3_text", "falcon", "phi", "phi3", "gpt_bigcode", "codegen", "mpt",
    "stablelm", "t5", "bert",
]  # fmt: skip


def raw(family: str) -> dict[str, Any]:
    text = (resources.files("reshard.architectures") / f"{family}.toml").read_text("utf-8")
    return tomllib.loads(text)


def entries(table: Architecture) -> list[Module]:
    values = [*table.base.values(), *table.top.values()]
    return [
        Module(role=option) if isinstance(option, str) else option
        for value in values
        for option in (value if isinstance(value, tuple) else (value,))
    ]


@pytest.mark.parametrize("model_type", PROMISED)
def test_every_promised_family_has_a_table(model_type: str) -> None:
    table = for_model_type(model_type)
    assert table is not None
    roles = {entry.role for entry in entries(table)}
    assert {"embedding", "attention_output", "mlp_output"} <= roles
    assert {"query", "key", "value"} <= roles or "query_key_value" in roles
    assert "mlp_up" in roles or "mlp_gate_up" in roles
    assert roles <= set(get_args(Role))
    assert table.source


def test_every_fixture_has_a_table_and_no_model_type_has_two() -> None:
    assert {spec.model_type for spec in FAMILIES.values()} <= set(PROMISED)
    claimed = [model_type for table in families().values() for model_type in table.model_types]
    assert len(claimed) == len(set(claimed))
    assert for_model_type("nonesuch") is None


@pytest.mark.parametrize("family", families())
def test_fused_modules_say_their_parts(family: str) -> None:
    for entry in entries(families()[family]):
        if entry.role == "query_key_value":
            assert sorted(entry.parts) == ["key", "query", "value"]
        elif entry.role == "mlp_gate_up":
            assert sorted(entry.parts) == ["gate", "up"]
        else:
            assert entry.parts == ()
            assert entry.blocks == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prefx": "model"}, "unknown field `prefx`"),
        ({"base": {"embed_tokens": "embeding"}}, "Invalid enum value 'embeding'"),
        ({"base": {"qkv": {"role": "query_key_value", "part": ["query"]}}}, "unknown field `part`"),
        ({"base": {"qkv": {"role": "query_key_value", "parts": ["quarry"]}}}, "Invalid enum value 'quarry'"),
        ({"geometry": {"heads": 1.5}}, "Expected"),
        ({"model_types": "llama"}, "Expected `array`, got `str`"),
    ],
)
def test_a_misspelt_table_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(raw("llama") | change, Architecture, strict=True)


def geometry(config: dict[str, Any] | str) -> Geometry | None:
    raw = config if isinstance(config, str) else json.dumps(config)
    return parse_model(raw.encode(), "config.json").geometry


LLAMA = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "vocab_size": 99,
    "num_hidden_layers": 3,
}
FALCON = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"} | {"num_kv_heads": 4}
T5 = {"num_heads": 8, "d_kv": 16, "d_model": 64, "vocab_size": 99, "num_layers": 3}


@pytest.mark.parametrize(
    "model_type, settings, kv_heads, head_dim",
    [
        ("llama", LLAMA, 2, 8),
        # Heads that are wider than hidden / heads.
        ("qwen3", LLAMA | {"head_dim": 32}, 2, 32),
        # Gemma's class has a default that is not hidden / heads.
        ("gemma2", LLAMA, 2, 256),
        # Falcon's three layouts; the first is the default.
        ("falcon", FALCON, 1, 8),
        ("falcon", FALCON | {"new_decoder_architecture": True}, 4, 8),
        ("falcon", FALCON | {"multi_query": False}, 8, 8),
        ("t5", T5, 8, 16),
    ],
)
def test_geometry_by_hand(model_type: str, settings: dict[str, Any], kv_heads: int, head_dim: int) -> None:
    assert geometry({"model_type": model_type} | settings) == Geometry(
        heads=8, kv_heads=kv_heads, head_dim=head_dim, hidden=64, vocab=99, layers=3
    )


def test_a_family_without_a_table_may_have_no_geometry() -> None:
    assert geometry({"model_type": "nonesuch"}) is None


@pytest.mark.parametrize(
    "config, message",
    [
        ("{", "config.json is no JSON"),
        ("[]", "it has no model_type"),
        ('{"architectures": ["LlamaForCausalLM"]}', "it has no model_type"),
        ('{"model_type": "llama"}', "does not say the model's heads: it has no usable num_attention_heads"),
        ('{"model_type": "opt", "num_attention_heads": 0}', "num_attention_heads"),
        ('{"model_type": "opt", "num_attention_heads": "8"}', "num_attention_heads"),
    ],
)
def test_configurations_that_say_too_little(config: str, message: str) -> None:
    with pytest.raises(DamagedFileError) as caught:
        geometry(config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "config, expected",
    [
        ('{"model_type": "nonesuch"}', True),
        ('{"model_type": "nonesuch", "tie_word_embeddings": false}', False),
    ],
)
def test_ties_default_to_transformers_default(config: str, expected: bool) -> None:
    assert parse_model(config.encode(), "config.json").is_tied is expected
