"""Derived roles of every family beside `reshard`'s tables, transformers' plans and DeepSpeed's AutoTP."""

import contextlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.module_inject.auto_tp import AutoTP
from torch import nn

from fixtures.families import FAMILIES
from fixtures.tiny import save
from planner.models.build import build as build_spec
from planner.models.shipped import shipped_spec
from planner.tensor_parallel.patterns import pattern_of
from planner.tensor_parallel.policy import injection_policy, relative_name
from planner.tensor_parallel.roles_file import export
from planner.tracing.meta_model import build
from planner.tracing.partition.derive import derive
from planner.tracing.partition.schema import PartitionSpec
from planner.tracing.store import shipped_graph
from reshard.errors import CannotSplitError
from reshard.formats.per_rank import POLICY, ways_by_roles, ways_to_cut
from reshard.job import open_source
from reshard.layout import joined
from reshard.rules import Rules

STYLES = {"colwise": "column", "packed_colwise": "column", "rowwise": "row", "packed_rowwise": "row"}


@cache
def model_of(family: str) -> Any:
    import transformers

    found = FAMILIES[family]
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[found.model_type]
    config = config_class(**found.config_arguments)
    model_class = getattr(transformers, found.auto_class)._model_mapping[config_class]
    return build(config, model_class, torch.bfloat16)


@cache
def partition_of(family: str) -> PartitionSpec:
    return derive(model_of(family))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "codegen"])
def test_ranks_get_what_the_familys_table_gives_them(family: str, tmp_path: Path) -> None:
    source = open_source(str(save(family, tmp_path / family)))
    names = [name for name, _ in model_of(family).named_parameters()]
    by_roles = ways_by_roles(source, export(partition_of(family), names), 2)
    by_table = ways_to_cut(source, POLICY, 2)
    rules = Rules(source.model, source.tensors)
    assert set(by_roles) == set(by_table)
    compared = 0
    for name, table in by_table.items():
        first = source.aliases.get(name, name)
        if rules.rule(name, source.tensors[first]).role in ("embedding", "head", "head_bias"):
            continue  # cut along the vocabulary, which is no feature of a weight's input
        roles = by_roles[name]
        assert (table is None) == (roles is None), name
        if table is None or roles is None:
            continue
        assert table.dim == roles.dim, name
        for rank in range(2):
            ours, theirs = (sorted(joined(sorted(way.intervals(name, 2, rank)))) for way in (roles, table))
            assert ours == theirs, (name, rank)
        compared += 1
    assert compared >= 4


def test_codegens_table_knows_that_its_forward_expects_four_blocks(tmp_path: Path) -> None:
    # The roles say which rows are a head's; in which order the forward wants them is no matter of roles.
    source = open_source(str(save("codegen", tmp_path)))
    table = ways_to_cut(source, POLICY, 2)["transformer.h.0.attn.qkv_proj.weight"]
    assert table is not None
    with pytest.raises(CannotSplitError, match="blocks that the model's forward expects"):
        table.intervals("qkv", 2, 0)
    assert partition_of("codegen").parameters["transformer.h.0.attn.qkv_proj.weight"].num_groups == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_tp_plan_is_derived_as_the_plan_says(family: str) -> None:
    model = model_of(family)
    plan = dict(model.tp_plan or {})
    found = {
        pattern_of(n).removesuffix(".weight"): r.role for n, r in partition_of(family).parameters.items()
    }
    weights = {pattern_of(n).removesuffix(".weight") for n, _ in model.named_parameters()}
    listed = {name: STYLES[style] for name, style in plan.items() if name in weights and style in STYLES}
    assert {name: found.get(name) for name in listed} == listed


@pytest.mark.parametrize(
    "name",
    [
        "gpt-neo-125m", "gpt-j-6b", "gpt-neox-20b", "opt-125m", "opt-350m", "bloom-560m", "llama-2-7b",
        "falcon-7b", "falcon-40b", "mistral-7b", "mixtral-8x7b", "phi-3-mini", "qwen2.5-7b", "qwen3-30b-a3b",
        "gemma-2-9b", "bert-large", "t5-v1.1-small",
    ],
)  # fmt: skip
def test_the_policy_of_a_shipped_graph_is_what_autotp_finds(name: str) -> None:
    graph = shipped_graph(shipped_spec(name))
    assert graph is not None
    policy = injection_policy(graph)
    model = build(*build_spec(shipped_spec(name)), torch.bfloat16)
    with contextlib.redirect_stdout(io.StringIO()):
        parsed = {kind.__name__: set(names) for kind, names in AutoTP.tp_parser(model)}
    assert set(policy) <= set(parsed)
    for block_class, rows in policy.items():
        blocks = [block for block in model.modules() if type(block).__name__ == block_class]
        linears = {
            relative_name(f"b.{path}", "b")
            for block in blocks
            for path, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }
        # AutoTP takes norms' neighbours by their place; names that no block has change nothing.
        assert set(rows) == parsed[block_class] & linears


def test_autotp_refuses_gpt2_for_which_a_policy_of_linears_is_empty() -> None:
    graph = shipped_graph(shipped_spec("gpt2"))
    assert graph is not None
    assert injection_policy(graph) == {}
    model = build(*build_spec(shipped_spec("gpt2")), torch.bfloat16)
    with pytest.raises(AssertionError, match="AutoTP not supported"):
        AutoTP.tp_parser(model)
