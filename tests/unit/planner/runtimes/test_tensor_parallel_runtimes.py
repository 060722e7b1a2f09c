"""Which models the tensor-parallel runtimes run, at which degrees, and why not the others."""

import re

import msgspec
import pytest

from planner.cost.runtime_model import Scenario
from planner.graph.schema import ModuleGraph, ModuleRole, Node, Tensor
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.runtimes.deepspeed_tp.families import mistaken, why_not
from planner.runtimes.registry import RUNTIME_MODELS
from planner.schema.workload import Workload
from planner.tensor_parallel.policy import injection_policy
from planner.tracing.store import graph_for

WORKLOAD = Workload(batch_size=1, prompt_tokens=16, new_tokens=4, dtype="float16")


def graph(model: str) -> ModuleGraph:
    return graph_for(resolve(model))


def reason(runtime: str, model: str, degree: int) -> str | None:
    profile = load("16xa100-80g")
    runtime_model = RUNTIME_MODELS[runtime]
    settings = next(s for s in runtime_model.configurations(profile) if s.num_ranks == degree)
    return runtime_model.why_not(Scenario.whole(graph(model), profile, WORKLOAD, settings, runtime_model))


@pytest.mark.parametrize(
    "runtime, model, degree",
    [
        ("deepspeed-tp", "gpt-j-6b", 16),
        ("deepspeed-tp", "bloom-176b", 16),
        ("deepspeed-tp", "falcon-40b", 8),
        ("deepspeed-tp", "t5-v1.1-xxl", 8),
        ("deepspeed-tp", "llama-2-70b", 8),
        ("transformers-tp", "llama-2-70b", 8),
        ("transformers-tp", "mixtral-8x7b", 8),
        ("transformers-tp", "gpt-neox-20b", 4),
    ],
)
def test_what_runs(runtime: str, model: str, degree: int) -> None:
    assert reason(runtime, model, degree) is None


@pytest.mark.parametrize(
    "runtime, model, degree, words",
    [
        ("deepspeed-tp", "gpt2", 2, "attn.c_attn of GPT2LMHeadModel is a Conv1D"),
        ("deepspeed-tp", "falcon-7b", 2, "only Falcons of the newer layout"),
        ("deepspeed-tp", "mixtral-8x7b", 2, "of class MixtralExperts"),
        ("deepspeed-tp", "gpt-neo-125m", 8, "12 groups .* do not divide over 8 ranks; 2, 3, 4, 6, 12 work"),
        ("deepspeed-tp", "llama-2-70b", 16, "8 groups"),
        ("transformers-tp", "opt-30b", 2, "no tensor-parallel plan .* for opt"),
        ("transformers-tp", "llama-2-70b", 16, "8 groups"),
    ],
)
def test_what_does_not(runtime: str, model: str, degree: int, words: str) -> None:
    found = reason(runtime, model, degree)
    assert found is not None
    assert re.search(words, found), found


@pytest.mark.parametrize(
    "model, policy",
    [
        ("opt-125m", {"OPTDecoderLayer": ("self_attn.out_proj", ".fc2")}),
        ("gpt-j-6b", {"GPTJBlock": ("attn.out_proj", "mlp.fc_out")}),
        ("bloom-560m", {"BloomBlock": ("self_attention.dense", "mlp.dense_4h_to_h")}),
        ("gpt-neo-125m", {"GPTNeoBlock": ("attention.out_proj", "mlp.c_proj")}),
        ("t5-v1.1-small", {"T5Block": ("SelfAttention.o", "DenseReluDense.wo", "EncDecAttention.o")}),
    ],
)
def test_policies_by_hand(model: str, policy: dict[str, tuple[str, ...]]) -> None:
    assert injection_policy(graph(model)) == policy


def block_of(*nodes: tuple[str, str, str | None, float]) -> ModuleGraph:
    """A graph of one block of an unknown family: name, class, role and share that is cut."""
    return msgspec.structs.replace(
        graph("opt-125m"),
        model_type="unheard_of",
        model_class="UnheardOf",
        blocks=("layers.0",),
        block_classes=("Layer",),
        nodes=tuple(
            Node(
                name=f"layers.0.{name}",
                class_name=class_name,
                order=order,
                block="layers.0",
                tensors=(Tensor(name="weight", shape=(64, 64)),),
                tensor_parallel=ModuleRole(role=role, num_groups=8, sharded=sharded) if role else None,
            )
            for order, (name, class_name, role, sharded) in enumerate(nodes)
        ),
    )


QKV = ("attn.q", "Linear", "column", 1.0)
OUT = ("attn.o", "Linear", "row", 1.0)


@pytest.mark.parametrize(
    "nodes, words",
    [
        ([QKV, OUT], None),
        ([QKV, OUT, ("router", "TopKRouter", None, 1.0)], None),
        ([QKV], "no row-parallel Linear is known"),
        ([QKV, OUT, ("attn.k", "Linear", "column", 0.5)], "would cut the keys and values in layers.0.attn.k"),
        ([QKV, OUT, ("attn.gate", "Linear", None, 1.0)], "would cut layers.0.attn.gate, which every rank"),
        (
            [("attn.qkv_proj", "Linear", "column", 1.0), OUT],
            "does not know the layout of the fused rows of layers.0.attn.qkv",
        ),
        ([QKV, OUT, ("experts", "Experts", "row", 1.0)], "layers.0.experts is a module of class Experts"),
        (
            [QKV, OUT, ("cross.attn.o", "Linear", "column", 1.0)],
            "take layers.0.cross.attn.o for a row-parallel",
        ),
    ],
)
def test_families_that_nobody_ran_are_judged_by_rule(
    nodes: list[tuple[str, str, str | None, float]], words: str | None
) -> None:
    found = why_not(block_of(*nodes), 2)
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert words in found


def test_a_linear_of_the_same_name_is_found() -> None:
    assert mistaken(block_of(QKV, OUT)) is None
    assert mistaken(block_of(QKV, OUT, ("cross.attn.o", "Linear", "column", 1.0))) == "layers.0.cross.attn.o"
