"""Two ranks of every family with NaN for what is not theirs give the whole model's logits."""

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from fixtures.families import FAMILIES
from fixtures.tiny import build
from planner.tensor_parallel.roles_file import export
from planner.tracing.meta_model import build as build_meta
from planner.tracing.partition.derive import derive
from planner.tracing.partition.schema import PartitionSpec
from reshard.roles import Roles as File

from .lockstep import run


class Case(NamedTuple):
    """A tiny model, its derived roles, and what it computes alone."""

    model: Any
    roles: PartitionSpec
    file: File
    inputs: dict[str, Any]
    logits: torch.Tensor


@cache
def case(family: str) -> Case:
    model = build(family)
    if getattr(model.config, "_experts_implementation", None) is not None:
        model.set_experts_implementation("eager")
    roles = derive(build_meta(model.config, type(model), torch.float32))
    names = [name for name, _ in model.named_parameters()]
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(3, 100, (2, 7), generator=generator)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 100, (2, 4), generator=generator)
    with torch.no_grad():
        logits = model(**inputs).logits
    return Case(model, roles, export(roles, names), inputs, logits)


def rows_of(found: Case) -> set[str]:
    return {name for name, role in found.roles.parameters.items() if role.role == "row"}


@pytest.mark.parametrize("family", FAMILIES)
def test_poisoned_ranks_give_the_whole_models_logits(family: str) -> None:
    found = case(family)
    logits = run(found.model, found.inputs, found.file, rows_of(found))
    torch.testing.assert_close(logits, torch.stack([found.logits] * 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_ownership_shifted_by_one_feature_is_detected(family: str) -> None:
    found = case(family)
    first_layer = [
        name
        for name, role in found.roles.parameters.items()
        if role.role == "column" and ".1." not in name.replace("layer.1.", "")
    ]
    assert first_layer
    for name in first_layer:
        logits = run(found.model, found.inputs, found.file, rows_of(found), shifted=name)
        # Some kernels of attention take NaN for masked: then the result is a number, but another one.
        assert not torch.allclose(logits, torch.stack([found.logits] * 2), rtol=1e-3, atol=1e-3), name
