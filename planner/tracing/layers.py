"""Finds structurally equal elements of layer lists, so that one is traced and the others are replayed."""

from collections import defaultdict
from typing import Any

import msgspec
import torch
from torch import nn

_SCALARS = (int, float, bool, str, type(None), torch.dtype)


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """An element of a layer list.

    Attributes:
        name: fqn of the element.
        signature: number shared by the elements that are structurally equal.
        indices: values of the attributes that count the layers (such as `layer_idx`), in a fixed order.
    """

    name: str
    signature: int
    indices: tuple[int, ...]


def equal_layers(model: nn.Module) -> dict[str, Layer]:
    """Every element of a ModuleList with at least two elements, by fqn.

    Two elements are equal when their submodules have the same classes, tensor shapes and scalar
    attributes, except integers that count the layers, and when the configuration's lists about layers do not
    distinguish them.
    """
    layers: dict[str, Layer] = {}
    signatures: dict[Any, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            for layer, key in zip(*_describe(model, name, module), strict=True):
                signature = signatures.setdefault((name, key), len(signatures))
                layers[layer[0]] = Layer(name=layer[0], signature=signature, indices=layer[1])
    return layers


def _describe(
    model: nn.Module, name: str, layers: nn.ModuleList
) -> tuple[list[tuple[str, tuple[int, ...]]], list[Any]]:
    facts = [_facts(layer) for layer in layers]
    counting = _counting_keys(facts)
    per_layer = _config_lists(_config_of(model, name), len(layers))
    described, keys = [], []
    for position, layer_facts in enumerate(facts):
        indices = tuple(layer_facts[key] for key in counting if key in layer_facts)
        structure = frozenset((key, value) for key, value in layer_facts.items() if key not in counting)
        described.append((f"{name}.{position}", indices))
        keys.append((structure, tuple(values[position] for values in per_layer)))
    return described, keys


def _facts(layer: nn.Module) -> dict[tuple[str, ...], Any]:
    """The attributes that determine a layer's structure, by (submodule, kind of attribute, name)."""
    facts: dict[tuple[str, ...], Any] = {}
    for path, module in layer.named_modules():
        facts[path, "class"] = type(module).__qualname__
        for key, value in vars(module).items():
            if isinstance(value, _SCALARS) and key != "training" and not key.startswith("_hf"):
                # The value of a float changes no shape, but zero may disable a branch.
                facts[path, "attribute", key] = bool(value) if isinstance(value, float) else value
            elif isinstance(value, (tuple, list)) and all(isinstance(v, _SCALARS) for v in value):
                facts[path, "attribute", key] = tuple(value)
        for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
            for key, tensor in tensors.items():
                facts[path, kind, key] = None if tensor is None else (tuple(tensor.shape), tensor.dtype)
    return facts


def _counting_keys(facts: list[dict[tuple[str, ...], Any]]) -> list[tuple[str, ...]]:
    """Integer attributes that count the layers: they grow in equal steps with the position.

    Two values always have equal steps, so with two layers the step must be 1 or the name must be that of an
    index.
    """
    seen: dict[tuple[str, ...], list[tuple[int, Any]]] = defaultdict(list)
    for position, layer_facts in enumerate(facts):
        for key, value in layer_facts.items():
            seen[key].append((position, value))
    return [
        key
        for key, values in seen.items()
        if len(values) > 1
        and all(isinstance(value, int) and not isinstance(value, bool) for _, value in values)
        and _counts(key[-1], values)
    ]


def _counts(name: str, values: list[tuple[int, Any]]) -> bool:
    (start, first), (following, second) = values[:2]
    step, rest = divmod(second - first, following - start)
    if rest or not step or any(value - first != step * (at - start) for at, value in values):
        return False
    return step == 1 or len(values) > 2 or "idx" in name or "layer" in name


def _config_of(model: nn.Module, name: str) -> Any:
    """The configuration of the nearest enclosing module that has one."""
    while name:
        name = name.rpartition(".")[0]
        config = getattr(model.get_submodule(name), "config", None)
        if config is not None:
            return config
    return None


def _config_lists(config: Any, num_layers: int) -> list[tuple[Any, ...]]:
    """Lists of the configuration about layers, each as one value per layer."""
    if config is None:
        return []
    lists: list[tuple[Any, ...]] = []
    for value in config.to_dict().values():
        if not isinstance(value, (list, tuple)) or not value:
            continue
        if len(value) == num_layers:
            lists.append(tuple(str(v) for v in value))
        elif all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            lists.append(tuple(position in value for position in range(num_layers)))
    return lists
