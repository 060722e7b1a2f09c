"""Roles of a running model's parameters as roles of the tensors that its checkpoint stores.

transformers stacks the experts of a layer, and renames modules, when it loads some families. It can undo that
to save them, so a parameter whose elements are numbers of groups is undone like any other, and what comes out
says which group each row of each stored tensor belongs to. Source: transformers 5.23,
`core_model_loading.revert_weight_conversion`.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.errors import UnsupportedTargetError
from reshard.layout import Interval
from reshard.role_cuts import Names, extent_of, tiles
from reshard.roles import Roles, WeightRoles

if TYPE_CHECKING:
    import torch


def as_stored(roles: Roles, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Roles:
    """The same roles under the checkpoint's names, where transformers stores other tensors than it runs.

    Only the library's own classes are built, without weights; no code that comes with a checkpoint is run.

    Args:
        roles: of parameters of the running model.
        config: `config.json`.
        shapes: of the checkpoint's tensors.

    Returns:
        The given roles when transformers does not know the family, or has other names for its parameters.

    Raises:
        UnsupportedTargetError: what is stored cannot be told from what runs.
    """
    if not Names(shapes).lacks((*roles.weights, *roles.bias_once)):
        return roles
    # A few seconds, and only for names that the checkpoint does not have.
    model = _without_weights(json.dumps(config))
    if model is None:
        return roles
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    names = Names(parameters)
    if names.lacks((*roles.weights, *roles.bias_once)):
        return roles
    weights: dict[str, WeightRoles] = {}
    for name, weight in names.matches(roles.weights).items():
        weights |= _stored(model, name, weight, parameters[name], shapes)
    once = names.matches(dict.fromkeys(roles.bias_once, True))
    return msgspec.structs.replace(
        roles, weights=weights, bias_once=tuple(n for name in once for n in _undone(model, name, None))
    )


@lru_cache(maxsize=1)
def _without_weights(raw: str) -> Any:
    """The model of a `config.json` on the meta device, told how its weights are stored; None: unknown."""
    config = json.loads(raw)
    import torch
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        made: Any = CONFIG_MAPPING[config["model_type"]]
        named = [getattr(transformers, str(n), None) for n in config.get("architectures") or ()]
        kind: Any = next((n for n in named if n is not None), transformers.AutoModelForCausalLM)
        build = getattr(kind, "_from_config", None) or kind.from_config
        with torch.device("meta"):
            # As from_pretrained reads it: infinities are stored as objects.
            model = build(made.from_dict(made._decode_special_floats(config)))
    except Exception:  # of a configuration that nobody checked; the names stay, and are unknown
        return None
    # Which prefixes a checkpoint had is known only of a model that was loaded from one.
    model._weight_conversions = [
        c for c in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(c, PrefixChange)
    ]
    return model


def _undone(model: Any, name: str, values: "torch.Tensor | None") -> "dict[str, torch.Tensor]":
    """What becomes of a parameter when it is saved; without values, of a vector, and only its name counts."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    try:
        given = torch.zeros(1) if values is None else values
        return dict(revert_weight_conversion(model, {name: given}))
    except Exception as error:  # an operation that needs other parameters, or all of this one
        raise UnsupportedTargetError(
            f"the roles name {name}, which is stored otherwise, and transformers does not say how "
            f"({type(error).__name__}: {error}); give the roles of the stored tensors"
        ) from error


def _stored(
    model: Any,
    name: str,
    weight: WeightRoles,
    shape: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, WeightRoles]:
    undone = _undone(model, name, _numbers(name, weight, shape))
    if set(undone) == {name}:
        return {name: weight}
    # A fused parameter may come apart into tensors of which nothing is cut.
    cut = {key: numbers for key, numbers in undone.items() if numbers.any()}
    return {key: _read_off(key, numbers, len(weight.groups), shapes, name) for key, numbers in cut.items()}


def _numbers(name: str, weight: WeightRoles, shape: tuple[int, ...]) -> "torch.Tensor":
    """The number of its group, from 1 on, for each index of the dimension that is cut; 0 for everybody's."""
    import torch

    numbers = torch.zeros(extent_of(weight, shape, name), dtype=torch.int64)
    for begin, end, group in tiles(weight, len(numbers), name):
        numbers[begin:end] = group + 1
    # Stacked experts come apart along the first dimension. The others are as good as one element.
    extents = [n if len(shape) > 2 and dim == 0 else 1 for dim, n in enumerate(shape)]
    aligned = numbers.reshape([-1 if dim == weight.dim else 1 for dim in range(len(shape))])
    extents[weight.dim] = shape[weight.dim]
    return aligned.expand(extents)


def _read_off(
    key: str, numbers: "torch.Tensor", num_groups: int, shapes: Mapping[str, tuple[int, ...]], name: str
) -> WeightRoles:
    # Experts that stay stacked are cut alike: the numbers change along one dimension, whatever it is now.
    along = [d for d in range(numbers.dim()) if (numbers != numbers.select(d, 0).unsqueeze(d)).any()]
    shape = shapes.get(key, ())
    if len(along) != 1 or len(shape) != numbers.dim() or shape[along[0]] != numbers.shape[along[0]]:
        raise UnsupportedTargetError(
            f"the roles name {name}, which transformers stores as {key}, and the checkpoint has "
            f"{f'that with shape {list(shape)}' if shape else 'no such tensor'}; give the roles of what it "
            "has"
        )
    groups: list[list[Interval]] = [[] for _ in range(num_groups)]
    for begin, end, group in _runs(numbers.movedim(along[0], 0).reshape(shape[along[0]], -1)[:, 0].tolist()):
        if group:
            groups[group - 1].append((begin, end))
    return WeightRoles(dim=along[0], groups=tuple(map(tuple, groups)))


def _runs(values: Iterable[int]) -> list[tuple[int, int, int]]:
    """Begin, end and value of each run of equal values."""
    runs: list[tuple[int, int, int]] = []
    for at, value in enumerate(values):
        if runs and runs[-1][2] == value:
            runs[-1] = (runs[-1][0], at + 1, value)
        else:
            runs.append((at, at + 1, value))
    return runs
