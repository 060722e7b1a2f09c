"""What is said of families, compared with the libraries themselves."""

import pytest
import torch
from deepspeed.module_inject.auto_tp import AutoTP
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from fixtures.families import FAMILIES
from planner.models.build import build
from planner.models.resolve import resolve
from planner.runtimes.deepspeed_tp.families import AUTO_TP_MODEL_TYPES, why_not
from planner.runtimes.transformers_tp.families import PLANNED
from planner.tensor_parallel.policy import injection_policy
from planner.tracing.meta_model import build as build_meta
from planner.tracing.store import graph_for
from tests.integration.tensor_parallel_cases import save

#: Fixtures of the families that are left to DeepSpeed's own rules.
LEFT_TO_DEEPSPEED = sorted(
    name for name, family in FAMILIES.items() if family.model_type in AUTO_TP_MODEL_TYPES
)


@pytest.mark.parametrize("family", LEFT_TO_DEEPSPEED)
def test_deepspeed_finds_the_linears_that_the_graph_does(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spec = resolve(str(save(family, tmp_path_factory.mktemp(family))))
    graph = graph_for(spec)
    reason = why_not(graph, 2)
    if reason is not None:
        pytest.skip(f"{family} is not run: {reason}")
    config, model_class = build(spec)
    found = {
        kind.__name__: set(rows)
        for kind, rows in AutoTP.tp_parser(build_meta(config, model_class, torch.float32))
    }
    assert found == {kind: set(rows) for kind, rows in injection_policy(graph).items()}


def test_every_planned_family_is_there() -> None:
    mappings = (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    types = {name for mapping in mappings for name in mapping}
    assert {name for name in types if getattr(CONFIG_MAPPING[name], "base_model_tp_plan", None)} == PLANNED
