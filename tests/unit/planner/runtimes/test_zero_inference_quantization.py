"""The planner and `quantize` write the same `weight_quantization` block, and a plan prices what it names."""

import json
from collections.abc import Iterator

import msgspec
import pytest

from fixtures.graphs import layered_graph
from planner.errors import InvalidInputError
from planner.graph.schema import ModuleGraph
from planner.models.resolve import resolve
from planner.models.shipped import shipped_config, shipped_names
from planner.runtimes.zero_inference.parameters import parameters
from planner.runtimes.zero_inference.quantization import (
    PackedGraph,
    choice_for,
    packed,
    weight_quantization,
    weights_of,
    with_schemes,
)
from planner.search.user_ds_config import quantization_findings, schemes_of
from planner.tracing.store import graph_for
from quantize.deepspeed_block import matched
from quantize.formats import zero_inference
from quantize.scheme import ZeroInference
from quantize.select import decide
from reshard.errors import CheckpointError
from reshard.formats.base import Source
from reshard.model import parse_model
from reshard.storage import open_folder
from reshard.tensors import LogicalTensor

#: Model type → what the parts of stacked experts are called on disk, and what their block is called there.
EXPERTS = {
    "mixtral": ({"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}, "block_sparse_moe"),
    "qwen3_moe": ({"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}, "mlp"),
}


def on_disk(kind: str, fqn: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A parameter of the running model as the checkpoint's tensors."""
    parts, block = EXPERTS.get(kind, ({}, "mlp"))
    layer, _, which = fqn.partition(".mlp.experts.")
    if which:
        num_experts, rows, columns = shape
        for expert in range(num_experts):
            for name in parts[which]:
                yield f"{layer}.{block}.experts.{expert}.{name}.weight", (rows // len(parts[which]), columns)
    elif fqn == "lm_head.weight" and kind == "gpt_neox":
        yield "embed_out.weight", shape
    else:
        yield fqn.replace(".mlp.gate.", f".{block}.gate."), shape


def checkpoint_of(name: str, graph: ModuleGraph) -> Source:
    """A checkpoint of a shipped model, without its data."""
    duplicates = {fqn for tie in graph.ties for fqn in tie[1:]}
    tensors = {
        stored: LogicalTensor(dtype="float16", shape=shape)
        for node in graph.nodes
        for tensor in node.tensors
        if tensor.kind == "parameter" and f"{node.name}.{tensor.name}" not in duplicates
        for stored, shape in on_disk(graph.model_type, f"{node.name}.{tensor.name}", tensor.shape)
    }
    config = json.dumps(shipped_config(name)).encode()
    return Source(
        format="huggingface",
        folder=open_folder("."),
        model=parse_model(config, name),
        tensors=tensors,
        files=(),
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", shipped_names())
def test_both_writers_name_the_same_weights_or_refuse_for_the_same_reason(name: str, bits: int) -> None:
    graph = graph_for(resolve(name))
    source = checkpoint_of(name, graph)
    choice = choice_for(graph, bits)
    hints = [refusal.hint for refusal in choice.refusals]
    patterns = {hint.split("'")[1] for hint in hints if "exclude=" in hint}
    if choice.refusals:
        decisions = decide(source)
        with pytest.raises(CheckpointError) as raised:
            zero_inference.weight_quantization(
                source, decisions, zero_inference.fitting_scheme(source, decisions, bits)
            )
        first = choice.refusals[0]
        # Names differ where transformers stacks what the checkpoint has one by one; reasons do not.
        assert str(raised.value).partition(": ")[2] == f"{first.reason}; {first.hint}"
    decisions = decide(source, exclude=patterns)
    scheme = zero_inference.fitting_scheme(source, decisions, bits)
    if not choice.weights:
        with pytest.raises(CheckpointError) as raised:
            zero_inference.weight_quantization(source, decisions, scheme)
        with pytest.raises(InvalidInputError) as refused:
            weight_quantization(graph, bits)
        reason = str(refused.value).partition(": ")[2].removesuffix("; plan without `weight_bits`")
        assert str(raised.value).partition(": ")[2].startswith(reason)
        return
    block = weight_quantization(graph, bits)
    assert block == zero_inference.weight_quantization(source, decisions, scheme)
    # And DeepSpeed, following its keys, reaches what was priced.
    reached = matched(weights_of(graph), block["post_init_quant"])
    assert reached == {weight.module: choice.scheme for weight in choice.weights}


def test_mixtral_weighs_what_its_four_projections_save() -> None:
    graph = graph_for(resolve("mixtral-8x7b"))
    held = packed(graph, 4)
    # 32 layers of q and o (4096 by 4096) and k and v (1024 by 4096).
    projections = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096)
    saved = projections - projections * 4 // 16 - 2 * projections // 64
    assert held.num_parameters == graph.num_parameters - saved
    assert held.num_parameters > 0.97 * graph.num_parameters
    assert packed(graph, None) is graph


def test_an_empty_choice_says_so() -> None:
    with pytest.raises(InvalidInputError, match=r"no Linear in its blocks.*plan without `weight_bits`"):
        packed(graph_for(resolve("gpt2")), 8)


def config_with(dtype: str = "fp16", **block: object) -> dict[str, object]:
    return {dtype: {"enabled": True}, "zero_optimization": {"stage": 3}, "weight_quantization": block}


SETTING = {"num_bits": 4, "group_size": 64, "group_dim": 1, "symmetric": False}


def sentences(config: dict[str, object], graph: ModuleGraph | None = None) -> list[tuple[str, str]]:
    found = quantization_findings(graph or layered_graph(2), config)
    return [(finding.kind, finding.sentence) for finding in found]


def test_keys_that_match_nothing_quantize_nothing_and_that_is_said() -> None:
    ((kind, sentence),) = sentences(config_with(post_init_quant={"nowhere": SETTING}))
    assert kind == "ignored"
    assert "quantizes nothing: no Linear or Embedding of Layered has 'nowhere' in its name" in sentence
    assert sentences(config_with(post_init_quant={"up": SETTING})) == []
    assert sentences(config_with(quantized_initialization=SETTING)) == []
    assert sentences({"fp16": {"enabled": True}}) == []


@pytest.mark.parametrize(
    "block, words",
    [
        (
            {"post_init_quant": {"up": SETTING | {"num_bits": 3}}},
            "the scheme zero-inference has no codes of 3 bits",
        ),
        ({"post_init_quant": {"up": SETTING | {"symmetric": True}}}, "'up': symmetric is true"),
        ({"post_init_quant": {"up": {"num_bits": 8}}}, "DeepSpeed needs group_size, group_dim, symmetric"),
        ({"post_init_quant": {"up": SETTING | {"group_size": 48}}}, "groups of 48 weights do not divide"),
        ({"post_init_quant": {"layers.0": SETTING, "up": SETTING}}, "contains two keys"),
        ({"post_init_quant": {"up": 4}}, "4 is no object"),
        ({"quantized_initialization": SETTING | {"group_size": 48}}, "embed.weight: groups of 48 weights"),
        ({"quantized_initialization": SETTING, "post_init_quant": {"up": SETTING}}, "once more"),
    ],
)
def test_what_deepspeed_stops_at_is_rejected(block: dict[str, object], words: str) -> None:
    ((kind, sentence),) = sentences(config_with(**block))
    assert kind == "rejected"
    assert words in sentence


def test_weights_in_bfloat16_are_quantized_as_they_are_built_only() -> None:
    ((kind, sentence),) = sentences(config_with("bf16", post_init_quant={"up": SETTING}))
    assert (kind, "float16, not bfloat16" in sentence) == ("rejected", True)
    assert sentences(config_with("bf16", quantized_initialization=SETTING)) == []


def test_initialization_needs_the_linear_that_decodes() -> None:
    config = config_with(quantized_initialization=SETTING)
    config["zero_optimization"] = {"stage": 3, "memory_efficient_linear": False}
    ((kind, sentence),) = sentences(config)
    assert (kind, "leave memory_efficient_linear out" in sentence) == ("harmful", True)


def test_a_tied_head_is_quantized_with_its_embedding_or_apart_from_it() -> None:
    graph = layered_graph(1, tied=True)
    assert {"embed", "head"} <= set(schemes_of(graph, config_with(quantized_initialization=SETTING)))
    table, scheme = 256 * 64, ZeroInference(bits=4)
    both = with_schemes(graph, {"embed": scheme, "head": scheme})
    assert isinstance(both, PackedGraph)
    assert both.num_parameters == graph.num_parameters - table + table // 4 + 2 * table // 64
    # DeepSpeed gives the head a weight of its own then; the embedding stays as it is.
    alone = with_schemes(graph, {"head": scheme})
    assert alone.num_parameters == graph.num_parameters + table // 4 + 2 * table // 64
    assert alone.num_unpacked == both.num_unpacked == graph.num_parameters


def test_a_quantized_matrix_is_no_vector() -> None:
    graph = layered_graph(1)
    before, after = parameters(graph), parameters(packed(graph, 4))
    assert [one.is_vector for one in after] == [one.is_vector for one in before]
    (up,) = (one for one in after if one.fqn == "layers.0.up.weight")
    assert up.num_elements == 4 * 64 * 64 // 4 + 2 * 4 * 64 * 64 // 64


def test_a_class_derived_from_linear_stays_as_it_is() -> None:
    graph = layered_graph(1)
    nodes = tuple(
        msgspec.structs.replace(node, class_name="FalconLinear") if node.name == "layers.0.up" else node
        for node in graph.nodes
    )
    choice = choice_for(msgspec.structs.replace(graph, nodes=nodes), 8)
    assert [weight.module for weight in choice.weights] == ["layers.0.down"]
    assert [refusal.name for refusal in choice.refusals] == ["layers.0.up.weight"]
