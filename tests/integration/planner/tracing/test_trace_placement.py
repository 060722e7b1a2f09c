"""Blocks, co-location, ties and order as derived from a forward on fake devices."""

from functools import cache
from typing import Any

import pytest

from fixtures.families import FAMILIES
from planner.errors import TraceError
from planner.graph.compact import canonical, decode, encode
from planner.graph.groups import placement_units
from planner.graph.network import to_networkx
from planner.graph.schema import ModuleGraph
from planner.tracing.placement import TracedPlacement, trace_placement
from planner.tracing.trace import trace


@cache
def family(name: str) -> tuple[Any, type]:
    import transformers

    found = FAMILIES[name]
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[found.model_type]
    config = config_class(**found.config_arguments)
    return config, getattr(transformers, found.auto_class)._model_mapping[config_class]


@cache
def placement_of(name: str) -> TracedPlacement:
    return trace_placement(*family(name))


@cache
def graph_of(name: str) -> ModuleGraph:
    return trace(*family(name), generates=True)


@pytest.mark.parametrize(
    "name",
    [
        *("gptj", "opt", "bloom", "gpt_neo", "gpt_neox", "gpt2", "llama", "mixtral", "t5", "gemma2", "qwen2"),
        *("mistral", "qwen3_moe", "falcon-multi-query", "phi3", "codegen", "mpt", "stablelm"),
    ],
)
def test_blocks_are_those_that_the_library_lists(name: str) -> None:
    found = placement_of(name)
    assert set(found.block_classes) == set(found.library_no_split)
    assert len(found.blocks) >= 2


def test_blocks_are_in_execution_order() -> None:
    assert placement_of("llama").blocks == ("model.layers.0", "model.layers.1")
    assert placement_of("t5").blocks == (
        *("encoder.block.0", "encoder.block.1"),
        *("decoder.block.0", "decoder.block.1"),
    )


def test_berts_embeddings_are_a_block_of_their_own() -> None:
    assert set(placement_of("bert").block_classes) == {"BertEmbeddings", "BertLayer"}


def test_gpt_neo_adds_embeddings_that_must_share_a_device() -> None:
    assert [set(group) for group in placement_of("gpt_neo").co_located] == [
        {"transformer.wte", "transformer.wpe"}
    ]


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "bloom", "gptj", "t5"])
def test_others_need_no_co_location(name: str) -> None:
    assert placement_of(name).co_located == ()
    assert placement_of(name).leaks == ()


def test_replaying_equal_layers_changes_nothing() -> None:
    for name in ("gpt_neo", "mixtral", "t5", "bert"):
        assert trace_placement(*family(name), replay=False) == placement_of(name)


def test_ties_name_the_embedding_first() -> None:
    assert placement_of("gpt2").ties == (("transformer.wte.weight", "lm_head.weight"),)
    assert placement_of("llama").ties == ()
    (tied,) = placement_of("t5").ties
    assert tied[0] == "shared.weight"
    assert set(tied) >= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def test_a_model_that_cannot_be_built_is_a_sentence() -> None:
    import transformers

    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96)
    config.hidden_act = "no-such-activation"
    with pytest.raises(
        TraceError, match=r"LlamaForCausalLM cannot be built from its configuration: KeyError"
    ):
        trace_placement(config, transformers.LlamaForCausalLM)


@pytest.mark.parametrize("name", ["llama", "gpt_neo", "t5", "mixtral"])
def test_the_graph_agrees_with_the_model(name: str) -> None:
    import torch

    graph = graph_of(name)
    config, model_class = family(name)
    with torch.device("meta"):
        model = model_class(config)
    owned = {
        f"{node.name}.{tensor.name}": tensor.shape
        for node in graph.nodes
        for tensor in node.tensors
        if tensor.kind == "parameter"
    }
    expected = {key: tuple(p.shape) for key, p in model.named_parameters(remove_duplicate=False)}
    assert owned == expected
    assert graph.num_parameters == sum(p.numel() for p in model.parameters())
    assert graph.vocab_size == config.vocab_size
    assert [node.order for node in graph.nodes] == list(range(len(graph.nodes)))
    assert all(
        node.num_calls == 1 for node in graph.nodes if node.tensors and node.name not in ("", "shared")
    )


@pytest.mark.parametrize("name", ["llama", "gpt_neo", "t5", "mixtral", "gemma2"])
def test_a_traced_graph_survives_storage(name: str) -> None:
    graph = graph_of(name)
    assert decode(encode(graph)) == canonical(graph)


def test_placement_units_hold_what_must_stay_together() -> None:
    units = placement_units(graph_of("gpt_neo"))
    assert {"transformer.wte", "transformer.wpe", "lm_head"} <= set(units[0])
    assert len(units) == 4  # embeddings with the tied head, two blocks, the last norm
    assert units[-1] == ("transformer.ln_f",)


def test_activations_flow_from_block_to_block() -> None:
    graph = to_networkx(graph_of("llama"))
    hidden_bytes = 64 * 2
    for source, target in (
        ("model.embed_tokens", "model.layers.0"),
        ("model.layers.0", "model.layers.1.input_layernorm"),
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn"),
        ("model.layers.1.mlp.down_proj", "model.layers.1"),
    ):
        assert graph.edges[source, target]["bytes_per_token"] == hidden_bytes, (source, target)
    assert "lm_head" in graph
