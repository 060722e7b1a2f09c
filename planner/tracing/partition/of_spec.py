"""Roles of a model by its specification. Imports torch and transformers."""

import torch

from planner.errors import TraceError
from planner.models.build import build as build_spec
from planner.models.spec import ModelSpec
from planner.tracing.meta_model import build
from planner.tracing.partition.derive import derive
from planner.tracing.partition.schema import PartitionSpec


def partition_of(spec: ModelSpec) -> tuple[PartitionSpec, list[str]]:
    """The roles of a model, and the names of all its parameters.

    Raises:
        ModelError: transformers cannot build the model's class.
        TraceError: the model cannot be built, or its forward cannot be traced, without weights.
    """
    config, model_class = build_spec(spec)
    model = build(config, model_class, torch.bfloat16)
    try:
        roles = derive(model)
    except Exception as error:
        raise TraceError(
            f"{model_class.__name__} cannot be traced without weights: {type(error).__name__}: {error}"
        ) from error
    return roles, [name for name, _ in model.named_parameters()]
