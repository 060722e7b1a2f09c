"""Constraints on placement: blocks, co-location, ties and leaks, without costs."""

from collections import defaultdict
from typing import Any, Final

import msgspec
import torch
from torch import nn
from transformers import PreTrainedConfig

from planner.errors import TraceError
from planner.tracing.blocks import Constraints, Units, find_constraints, find_units
from planner.tracing.fake_devices import MAIN, fake_devices
from planner.tracing.layers import equal_layers
from planner.tracing.meta_model import build
from planner.tracing.placement_tracer import PlacementTracer, own_tensors

_PROMPT: Final = 16
_TARGET: Final = 8


class TracedPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """What constrains a model's placement.

    Attributes:
        units: smallest modules that must execute on one device.
        blocks: the no-split blocks that contain them, in execution order.
        block_classes: class name of each block.
        co_located: groups of module fqns that must share a device as well.
        main_device: module fqns that the runtime keeps on the root's device.
        ties: groups of parameter fqns that are one tensor, the canonical one first.
        leaks: sentences about operations that combine devices whatever the placement.
        uncalled_use: (owner, user): the user reads the owner's tensor without calling the owner.
        library_no_split: classes that the model lists as not to be split, restricted to modules that ran.
    """

    units: tuple[str, ...]
    blocks: tuple[str, ...]
    block_classes: tuple[str, ...]
    co_located: tuple[tuple[str, ...], ...]
    main_device: tuple[str, ...]
    ties: tuple[tuple[str, ...], ...]
    leaks: tuple[str, ...]
    uncalled_use: tuple[tuple[str, str], ...]
    library_no_split: tuple[str, ...]


def trace_placement(
    config: PreTrainedConfig, model_class: type, *, prompt: int = _PROMPT, replay: bool = True
) -> TracedPlacement:
    """Derives the placement constraints of an architecture from two forwards on fake devices.

    Args:
        config: a configuration of the class, with at least two layers; a stack of one is not recognised.
        model_class: a transformers class with a language-model head.
        prompt: tokens of the traced prompt.
        replay: whether equal layers are run once.

    Raises:
        TraceError: the model cannot be built or its forward cannot be traced.
    """
    with fake_devices():
        model = build(config, model_class, torch.float32, "cpu")
        ties = ties_of(model)  # before each owner gets a copy on its own device
        tracer = _run(model, (), prompt, replay)
        units = find_units(tracer.model, tracer.atoms, tracer.all_mixes())
        again = build(config, model_class, torch.float32, "cpu")
        checked = _run(again, units.blocks, prompt, replay)
        constraints = find_constraints(checked.all_mixes())
        return _placement(checked, units, constraints, ties, tracer.uncalled_use)


def _run(model: Any, units: tuple[str, ...], prompt: int, replay: bool) -> PlacementTracer:
    tracer = PlacementTracer(model, equal_layers(model) if replay else {}, units)
    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, prompt, dtype=torch.long, device=MAIN)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(1, _TARGET, dtype=torch.long, device=MAIN)
    try:
        tracer.run(inputs)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be traced on fake devices: {type(error).__name__}: {error}"
        ) from error
    return tracer


def _placement(
    tracer: PlacementTracer,
    units: Units,
    constraints: Constraints,
    ties: tuple[tuple[str, ...], ...],
    uncalled_use: set[tuple[str, str]],
) -> TracedPlacement:
    model: Any = tracer.model
    modules = dict(model.named_modules())
    by_order = sorted(units.blocks, key=lambda name: tracer.order.get(name, len(tracer.order)))
    owners = {name: name for name in modules}
    listed = set(model._no_split_modules or ())
    # A replayed layer may share a module with its template; the module is listed under the template's name.
    called = {type(modules[name]).__name__ for name in tracer.order if name in modules}
    root = ("",) if own_tensors(model) and any(True for _ in model.children()) else ()
    return TracedPlacement(
        units=units.units,
        blocks=tuple(by_order),
        block_classes=tuple(type(modules[name]).__name__ for name in by_order),
        co_located=tuple(_modules_of(group, owners) for group in constraints.co_located),
        main_device=(*root, *_modules_of(constraints.main_device, owners)),
        ties=ties,
        leaks=constraints.leaks,
        uncalled_use=tuple(sorted(uncalled_use)),
        library_no_split=tuple(sorted(listed & called)),
    )


def _modules_of(atoms: tuple[str, ...], modules: dict[str, str]) -> tuple[str, ...]:
    """Modules of placeable items: a tensor is replaced by the module that owns it."""
    return tuple(dict.fromkeys(a if a in modules else a.rpartition(".")[0] for a in atoms))


def ties_of(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Groups of parameter fqns that are one tensor, in definition order."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                names[id(parameter)].append(f"{name}.{key}" if name else key)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)
