"""What is derived for the families of the fixtures, and for models made to be hard."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fixtures.families import FAMILIES
from planner.models.shipped import shipped_names, shipped_spec
from planner.tensor_parallel.policy import injection_policy
from planner.tracing.meta_model import build
from planner.tracing.partition.derive import derive
from planner.tracing.partition.of_spec import partition_of
from planner.tracing.partition.schema import PartitionSpec
from planner.tracing.store import shipped_graph


def roles_of_family(family: str) -> PartitionSpec:
    import transformers

    found = FAMILIES[family]
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[found.model_type]
    config = config_class(**found.config_arguments)
    model_class = getattr(transformers, found.auto_class)._model_mapping[config_class]
    return derive(build(config, model_class, torch.bfloat16))


class Output(dict[str, torch.Tensor]):
    """What a model returns."""


class Tiny(nn.Module):
    """A model whose forward the tests write."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.body = body
        self.norm = nn.LayerNorm(8)
        self.config = SimpleNamespace(is_encoder_decoder=False, model_type="tiny", to_dict=dict)

    def forward(self, input_ids: torch.Tensor) -> Output:
        hidden = self.embed(input_ids)
        return Output(logits=self.norm(hidden + self.body(hidden)))


def derived(body: Any) -> PartitionSpec:
    with torch.device("meta"):
        return derive(Tiny(body()))


class Mlp(nn.Module):
    """Up, something in between, down."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(self.between(self.up(hidden)))
        return out


def roles_and_groups(roles: PartitionSpec) -> dict[str, tuple[str, int, int]]:
    found = roles.parameters
    return {name.removeprefix("body."): (r.role, r.dim, r.num_groups) for name, r in found.items()}


def test_features_of_an_mlp_are_apart() -> None:
    roles = derived(Mlp)
    assert roles_and_groups(roles) == {
        "up.weight": ("column", 0, 12),
        "up.bias": ("elementwise", 0, 12),
        "down.weight": ("row", 1, 12),
    }
    assert roles.biases == {"body.down.bias"}


def test_a_norm_over_all_features_keeps_them_together() -> None:
    class Normed(Mlp):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.softmax(hidden, dim=-1)

    assert derived(Normed).parameters == {}


def test_a_norm_over_groups_of_features_leaves_the_groups() -> None:
    class Grouped(Mlp):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.softmax(hidden.unflatten(-1, (3, 4)), dim=-1).flatten(-2)

    roles = derived(Grouped)
    assert roles_and_groups(roles)["down.weight"] == ("row", 1, 3)
    (groups,) = roles.parameters["body.down.weight"].families
    assert groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_interleaved_groups_are_index_sets() -> None:
    class Interleaved(Mlp):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.softmax(hidden.unflatten(-1, (4, 3)), dim=-2).flatten(-2)

    (groups,) = derived(Interleaved).parameters["body.up.weight"].families
    assert groups.tolist() == [0, 1, 2] * 4


def test_halves_that_are_multiplied_go_together() -> None:
    class Gated(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(8, 24)

        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            gate, up = hidden.chunk(2, dim=-1)
            return torch.sigmoid(gate) * up

    (groups,) = derived(Gated).parameters["body.up.weight"].families
    assert groups.tolist() == [*range(12), *range(12)]


def test_writing_into_a_slice_is_seen_through_every_view() -> None:
    class Written(Mlp):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(hidden)
            out[..., :6] = hidden[..., 6:]
            out[..., 6:].copy_(hidden[..., :6])
            return out

    (groups,) = derived(Written).parameters["body.up.weight"].families
    # Groups are numbered as the row meets them, and it meets the second half first.
    assert groups.tolist() == [*range(6, 12), *range(6)]


def test_a_parameter_of_each_head_is_cut_with_the_heads() -> None:
    class Scaled(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.empty(3, 1))
            self.of_all = nn.Parameter(torch.empty(4))

        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            heads = torch.softmax(hidden.unflatten(-1, (3, 4)), dim=-1)
            return (heads * self.scale * self.of_all).flatten(-2)

    found = roles_and_groups(derived(Scaled))
    assert found["scale"] == ("elementwise", 0, 3)
    assert "of_all" not in found


def test_an_operation_without_a_rule_keeps_all_it_touches_together() -> None:
    class Strange(Mlp):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(hidden.float(), dim=1).real.to(hidden.dtype)

    roles = derived(Strange)
    assert roles.unknown
    assert roles.parameters == {}


def test_features_that_leave_the_model_are_whole() -> None:
    class Leaving(Tiny):
        def forward(self, input_ids: torch.Tensor) -> Output:
            hidden = self.embed(input_ids)
            made = self.body.up(hidden)
            return Output(logits=self.norm(hidden + self.body.down(made)), extra=made)

    with torch.device("meta"):
        assert derive(Leaving(Mlp())).parameters == {}


@pytest.mark.parametrize(
    "family, parameter, num_groups, sharded",
    [
        ("bloom", "transformer.h.1.self_attention.query_key_value.weight", 4, 1.0),
        ("llama", "model.layers.1.self_attn.q_proj.weight", 2, 1.0),
        ("gpt2", "transformer.h.1.attn.c_attn.weight", 4, 1.0),
        ("mixtral", "model.layers.1.mlp.experts.gate_up_proj", 96, 1.0),
        # One head of keys and one of values, each on every rank, beside four of queries.
        ("falcon-multi-query", "transformer.h.1.self_attention.query_key_value.weight", 4, 4 / 6),
        ("gpt_bigcode", "transformer.h.1.attn.c_attn.weight", 4, 4 / 6),
        ("falcon-grouped", "transformer.h.1.self_attention.query_key_value.weight", 2, 1.0),
        ("t5", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 4, 1.0),
        ("t5", "decoder.block.1.layer.1.EncDecAttention.k.weight", 4, 1.0),
    ],
)
def test_known_families(family: str, parameter: str, num_groups: int, sharded: float) -> None:
    role = roles_of_family(family).parameters[parameter]
    assert role.num_groups == num_groups
    assert role.sharded == pytest.approx(sharded)


def test_slopes_of_alibi_are_reported_although_they_are_no_parameter() -> None:
    assert roles_of_family("bloom").constants
    assert not roles_of_family("llama").constants


def test_shipped_graphs_have_roles_and_t5s_policy() -> None:
    for name in shipped_names():
        graph = shipped_graph(shipped_spec(name))
        assert graph is not None
        rows = [n for n in graph.nodes if n.tensor_parallel is not None and n.tensor_parallel.role == "row"]
        of_block = Counter(node.block for node in rows)
        # An attention and an MLP, and nothing outside blocks.
        assert min(of_block.values()) >= 2, name
        assert set(graph.blocks) - set(of_block) <= {"bert.embeddings"}, name
        assert set(of_block) <= set(graph.blocks), name
    t5 = shipped_graph(shipped_spec("t5-v1.1-small"))
    assert t5 is not None
    policy = injection_policy(t5)
    assert {block: set(names) for block, names in policy.items()} == {
        "T5Block": {"SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"}
    }


def test_a_shipped_graph_says_what_is_derived_now() -> None:
    spec = shipped_spec("gpt-j-6b")
    graph = shipped_graph(spec)
    assert graph is not None
    roles, _ = partition_of(spec)
    stored = {n.name: n.tensor_parallel for n in graph.nodes if n.tensor_parallel is not None}
    derived_now = {n.rpartition(".")[0] for n, r in roles.parameters.items() if r.role != "elementwise"}
    assert set(stored) == derived_now
    assert stored["transformer.h.27.attn.out_proj"].num_groups == 16
