"""Kernel injection: which models its blocks compute, its workspace by hand, and what its folder says."""

import json
from typing import Any

import msgspec
import pytest

from fixtures.plans import plan_with
from planner.cost.runtime_model import Scenario
from planner.graph.schema import Edge, ModuleGraph, Tensor
from planner.hardware.load import load
from planner.models.resolve import resolve
from planner.runtimes.kernel_injection.emit import READS_ARCHIVES, emit, kernels
from planner.runtimes.kernel_injection.environment import REQUIREMENTS
from planner.runtimes.kernel_injection.families import FAMILIES, num_heads, unlike
from planner.runtimes.kernel_injection.model import RUNTIME_MODEL, workspace_bytes
from planner.schema.execution import ExecutionConfig
from planner.schema.plan import Plan
from planner.schema.workload import Workload
from planner.tracing.store import graph_for
from reshard.formats.injected import FAMILIES as LOADABLE

MODELS = ("bloom-7b1", "gpt-j-6b", "gpt-neo-1.3b", "gpt-neox-20b", "opt-6.7b")
WORKLOAD = Workload(batch_size=4, prompt_tokens=100, new_tokens=28, dtype="float16")
PROFILE = load("p4de.24xlarge")
ONE = RUNTIME_MODEL.configurations(PROFILE)[0]


def graph(name: str) -> ModuleGraph:
    """Of a shipped model."""
    return graph_for(resolve(name))


def reason(model: ModuleGraph, settings: ExecutionConfig = ONE, **changes: Any) -> str | None:
    """Why a model cannot run, with other lengths or another dtype perhaps."""
    return RUNTIME_MODEL.why_not(
        Scenario.whole(model, PROFILE, msgspec.structs.replace(WORKLOAD, **changes), settings, RUNTIME_MODEL)
    )


def test_families_are_those_that_pre_shards_load() -> None:
    assert set(FAMILIES) == set(LOADABLE)


@pytest.mark.parametrize("name", MODELS)
def test_released_models_are_computed(name: str) -> None:
    assert unlike(graph(name)) is None
    assert reason(graph(name)) is None


def test_a_gpu_by_itself_is_worth_pricing() -> None:
    assert ONE.num_ranks == 1
    assert ONE.label == "kernel-injection, 1 GPU"


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("opt-350m", "normalizes before attention and the MLP, this model after them"),
        ("llama-2-7b", "are not compatible"),
        ("gpt2", "cannot load GPT-2's blocks"),
        ("falcon-7b", "has no block for falcon that was found to compute it"),
    ],
)
def test_models_that_the_blocks_do_not_compute(name: str, sentence: str) -> None:
    found = reason(graph(name))
    assert found is not None
    assert sentence in found


def with_edge(model: ModuleGraph, source: str, target: str) -> ModuleGraph:
    """The model, with another way for results to go in its last block."""
    block = model.blocks[-1]
    extra = Edge(source=f"{block}{source}", target=f"{block}{target}", bytes_per_token=1.0)
    return msgspec.structs.replace(model, edges=(*model.edges, extra))


def with_node(model: ModuleGraph, name: str, **changes: Any) -> ModuleGraph:
    """The model with one module of its last block changed."""
    full = f"{model.blocks[-1]}.{name}"
    assert any(node.name == full for node in model.nodes)
    nodes = tuple(msgspec.structs.replace(n, **changes) if n.name == full else n for n in model.nodes)
    return msgspec.structs.replace(model, nodes=nodes)


def test_a_sequential_residual_is_seen_in_the_graph() -> None:
    found = unlike(with_edge(graph("gpt-neox-20b"), "", ".post_attention_layernorm"))
    assert found is not None
    assert "feeds attention and the MLP the same input" in found
    # In OPT the same edge is what the block computes.
    assert ("model.decoder.layers.0", "model.decoder.layers.0.final_layer_norm") in {
        (edge.source, edge.target) for edge in graph("opt-6.7b").edges
    }


def test_a_residual_of_norms_is_seen_in_the_graph() -> None:
    found = unlike(with_edge(graph("bloom-7b1"), ".input_layernorm", ""))
    assert found is not None
    assert "adds its norm's input to the residual" in found


def test_another_activation_is_seen_in_the_graph() -> None:
    found = unlike(with_node(graph("gpt-j-6b"), "mlp.act", class_name="ReLU"))
    assert found is not None
    assert "computes GELU, this model ReLU" in found


def test_biases_that_are_not_there_are_seen() -> None:
    weight = (Tensor(name="weight", shape=(18432, 6144)),)
    found = unlike(with_node(graph("gpt-neox-20b"), "attention.query_key_value", tensors=weight))
    assert found is not None
    assert "needs biases in attention's projections" in found


def test_a_narrower_mlp_is_seen() -> None:
    weight = (Tensor(name="weight", shape=(8192, 4096)),)
    found = unlike(with_node(graph("opt-6.7b"), "fc1", tensors=weight))
    assert found is not None
    assert "needs an MLP of 4 x hidden, and has 8192 for 4096" in found


def test_float16_alone_was_proved() -> None:
    found = reason(graph("opt-6.7b"), dtype="bfloat16")
    assert found == "its kernels were found to compute these models in float16, not in bfloat16"


def test_a_prompt_of_one_token_is_no_prompt() -> None:
    assert "a prompt of one token" in (reason(graph("opt-6.7b"), prompt_tokens=1) or "")


def test_gpt_neo_stays_inside_its_window() -> None:
    assert reason(graph("gpt-neo-1.3b"), prompt_tokens=200, new_tokens=55) is None
    assert "misplaces GPT-Neo's window" in (
        reason(graph("gpt-neo-1.3b"), prompt_tokens=200, new_tokens=56) or ""
    )
    assert reason(graph("gpt-j-6b"), prompt_tokens=200, new_tokens=56) is None


def test_the_workspace_by_hand() -> None:
    """OPT-6.7B has 32 heads of 128 features, which need no padding."""
    # 10·32·128 activations and 32·128 scores, for 4 sequences of 128 tokens, 2 bytes each
    opt = graph("opt-6.7b")
    heads = num_heads(opt)
    width = heads * (4096 // heads)
    assert width == 4096
    assert workspace_bytes(opt, WORKLOAD, 1) == (10 * 4096 + heads * 128) * 4 * 128 * 2
    assert workspace_bytes(opt, WORKLOAD, 2) == (10 * 4096 + heads // 2 * 128) * 4 * 128 * 2


def test_padded_heads_take_cache() -> None:
    neox = with_heads(graph("gpt-neox-20b"), 64)
    # 64 heads of 96, padded to 128: 10·64·128 activations, 64·128 scores, 2·44·64·32 features of padding
    assert workspace_bytes(neox, WORKLOAD, 1) == (81920 + 8192 + 180224) * 4 * 128 * 2
    bloom = with_heads(graph("bloom-7b1"), 64)  # of 64 features: nothing to pad
    assert workspace_bytes(bloom, WORKLOAD, 1) == (10 * 4096 + 64 * 128) * 4 * 128 * 2


def with_heads(model: ModuleGraph, heads: int) -> ModuleGraph:
    """The model with the roles that its first attention output would be traced to."""
    from planner.graph.schema import ModuleRole

    name = f"{model.blocks[0]}.{FAMILIES[model.model_type].block.out}"
    role = ModuleRole(role="row", num_groups=heads)
    nodes = tuple(
        msgspec.structs.replace(n, tensor_parallel=role) if n.name == name else n for n in model.nodes
    )
    return msgspec.structs.replace(model, nodes=nodes)


@pytest.fixture(scope="module")
def made() -> tuple[Plan, ModuleGraph]:
    """OPT-6.7B on one A100."""
    return plan_with("opt-6.7b", PROFILE, RUNTIME_MODEL, ONE, WORKLOAD)


def test_the_workspace_is_in_the_plan(made: tuple[Plan, ModuleGraph]) -> None:
    plan, model = made
    memory = plan.prediction.memory["gpu:0"]
    assert memory["decode"].staging == workspace_bytes(model, WORKLOAD, 1)
    assert plan.prediction.memory["cpu"]["decode"].staging == 0


def test_the_folder(made: tuple[Plan, ModuleGraph]) -> None:
    emitted = emit(*made)
    assert set(emitted.files) == {"kernels.json", "requirements.txt", "generate.py"}
    found = json.loads(emitted.files["kernels.json"])
    assert found["arguments"] == {
        "dtype": "float16",
        "tensor_parallel": {"tp_size": 1},
        "replace_with_kernel_inject": True,
        "max_out_tokens": 128,
        "min_out_tokens": 128,
    }
    assert found["computes"]["do_layer_norm_before"] == [True]
    assert emitted.files["requirements.txt"].decode().split() == list(REQUIREMENTS)
    assert "reshard CHECKPOINT --tp 1 --format deepspeed --dtype float16" in emitted.readme
    compile(emitted.files["generate.py"], "generate.py", "exec")


def test_archives_are_read_where_deepspeed_reads_them_right(made: tuple[Plan, ModuleGraph]) -> None:
    assert kernels(*made)["reads_archives"] is False
    assert frozenset({"bloom"}) == READS_ARCHIVES
    assert kernels(made[0], graph("bloom-7b1"))["reads_archives"] is True
