"""Runs a forward with every module on a fake device of its own and records operations that combine devices.

Inputs of a hooked module are moved to its device, as Accelerate's hooks do. An operation that combines
devices all the same would be an error on a real machine; here it is recorded, its inputs are moved to one
device, and the forward continues.
"""

from collections import defaultdict
from typing import Any, Final

import msgspec
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from planner.tracing.fake_devices import HOST, MAIN, NUM_DEVICES, devices_of
from planner.tracing.forwards import ForwardTracer, OutputSpec, Replay, is_under
from planner.tracing.layers import Layer

ON_MAIN: Final = "<main>"
ON_HOST: Final = "<host>"
_aten: Final = torch.ops.aten
_COPIES: Final = frozenset({_aten.copy_, _aten._to_copy, _aten._foreach_copy_})
_INDEXING: Final = frozenset({_aten.index, _aten.index_put_, _aten.index_put, _aten._unsafe_index})
# Arguments that models tell Accelerate not to move.
_NOT_MOVED: Final = frozenset(
    {"past_key_values", "past_key_value", "cache_params", "layer_past", "past_states", "state"}
)


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that combined several devices.

    Attributes:
        module: fqn of the module whose own forward ran it.
        atoms: the placeable items on these devices; ON_MAIN and ON_HOST for the main device and the host.
        hooked: the innermost hooked module that was running, or None.
    """

    module: str
    atoms: frozenset[str]
    hooked: str | None


def atoms_of(model: nn.Module, units: tuple[str, ...] = ()) -> list[str]:
    """The placeable items: `units`, and outside them leaf modules with tensors and tensors of other modules.

    The root's own tensors are not placeable, because Accelerate keeps them on the main device.
    """
    atoms = list(units)
    for name, module in model.named_modules():
        if any(is_under(name, unit) for unit in units):
            continue
        owned = own_tensors(module)
        is_leaf = not any(True for _ in module.children())
        if owned and is_leaf:
            atoms.append(name)
        elif owned and name:
            atoms.extend(f"{name}.{key}" for key in owned)
    return atoms


def own_tensors(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers that a module owns directly."""
    named = (*module._parameters.items(), *module._buffers.items())
    return [key for key, tensor in named if tensor is not None]


class PlacementTracer(ForwardTracer):
    """Traces a model that was built under `fake_devices()`.

    Attributes:
        atoms: the placeable items, each on a device of its own.
        mixes: operations that combined devices, with their names; without replayed layers.
        uncalled_use: (owner, user) where a module's tensor is used without calling the module.
    """

    def __init__(self, model: nn.Module, layers: dict[str, Layer], units: tuple[str, ...] = ()) -> None:
        """Place the model's tensors.

        Args:
            model: a model that was built under `fake_devices()`.
            layers: its equal layers, from `equal_layers`; empty to run every layer.
            units: fqns of modules that are hooked as a whole.
        """
        super().__init__(model, layers)
        self.atoms = atoms_of(model, units)
        self.mixes: dict[Mix, set[str]] = {}
        self.uncalled_use: set[tuple[str, str]] = set()
        self._hooks: list[str] = []
        self._hooked: dict[str, torch.device] = {}
        self._owner: dict[int, str] = {}
        self._copies: dict[tuple[int, torch.device], tuple[nn.Parameter, nn.Parameter]] = {}
        self._device = {a: torch.device("cpu", 1 + i % NUM_DEVICES) for i, a in enumerate(self.atoms)}
        # There may be more items than devices: a device belongs to the item that ran on it last.
        self._resident: dict[torch.device, str] = {MAIN: ON_MAIN, HOST: ON_HOST}
        for atom, device in self._device.items():
            self._resident.setdefault(device, atom)
        self._place()

    # ---- placement
    def _place(self) -> None:
        modules = dict(self.model.named_modules())
        if "" not in self._device:
            self._move_own("", self.model, MAIN, None)
        for atom, device in self._device.items():
            if atom in modules:
                self._hooked[atom] = device
                for name, module in modules[atom].named_modules(prefix=atom):
                    self._move_own(name, module, device, None)
            else:
                name, _, key = atom.rpartition(".")
                self._move_own(name, modules[name], device, key)

    def _move_own(self, name: str, module: nn.Module, device: torch.device, only_key: str | None) -> None:
        for key, parameter in module._parameters.items():
            if parameter is not None and only_key in (None, key):
                copy = self._copies.get((id(parameter), device))
                if copy is None:  # the original stays referenced, so that its id is not reused
                    moved = nn.Parameter(_like(parameter, device), requires_grad=False)
                    copy = self._copies[id(parameter), device] = (moved, parameter)
                module._parameters[key] = copy[0]
                self._owner.setdefault(id(copy[0]), name)
        for key, buffer in module._buffers.items():
            if buffer is not None and only_key in (None, key):
                moved_buffer = module._buffers[key] = _like(buffer, device)
                self._owner.setdefault(id(moved_buffer), name)

    # ---- recording
    def on_enter(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """See `planner.tracing.forwards.ForwardTracer.on_enter`; moves inputs of hooked modules."""
        device = self._hooked.get(name)
        if device is None:
            return args, kwargs
        self._resident[device] = name
        self._hooks.append(name)
        moved = {key: v if key in _NOT_MOVED else _moved(v, device) for key, v in kwargs.items()}
        return _moved(args, device), moved

    def on_leave(self, name: str) -> None:
        if self._hooks and self._hooks[-1] == name:
            self._hooks.pop()

    def on_op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `planner.tracing.forwards.ForwardTracer.on_op`; records operations that combine devices."""
        packet = func._overloadpacket
        flat, structure = tree_flatten((args, kwargs))
        for tensor in flat:
            owner = self._owner.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None
            if owner is not None and not is_under(self.current, owner):
                self.uncalled_use.add((owner, self.current))
        if packet in _COPIES:
            return func(*args, **kwargs)
        devices = devices_of(flat)
        if packet in _INDEXING and len(devices) > 1:
            devices = [d for d in devices if d != HOST]  # indices may come from the host
        if len(devices) > 1:
            return self._mended(func, flat, structure, devices)
        return func(*args, **kwargs)

    def _mended(self, func: Any, flat: list[Any], structure: Any, devices: list[torch.device]) -> Any:
        self._note(func._overloadpacket.__name__, devices)
        device = self._innermost(devices)
        if func._schema.is_mutable and isinstance(flat[0], FakeTensor):
            device = flat[0].device
        was_paused, self._paused = self._paused, True
        try:
            moved = [t.to(device) if devices_of([t]) not in ([], [device]) else t for t in flat]
        finally:
            self._paused = was_paused
        args, kwargs = tree_unflatten(moved, structure)
        return func(*args, **kwargs)

    def _note(self, operation: str, devices: list[torch.device]) -> None:
        atoms = frozenset(self._resident.get(d, str(d)) for d in devices)
        mix = Mix(module=self.current, atoms=atoms, hooked=self._hooks[-1] if self._hooks else None)
        self.mixes.setdefault(mix, set()).add(operation)

    def _innermost(self, devices: list[torch.device]) -> torch.device:
        """The device to move inputs to: the running module's; so a residual stream stays in its block."""
        inside = [d for d in devices if is_under(self._resident.get(d, ON_HOST), self.current)]
        return (inside or [d for d in devices if d not in (MAIN, HOST)] or devices)[0]

    # ---- layers
    def label(self, tensor: torch.Tensor) -> Any:
        return tensor.device, self._resident.get(tensor.device)

    def make_output(self, spec: OutputSpec, replay: Replay) -> torch.Tensor:
        device, resident = spec.label
        if resident is not None and is_under(resident, replay.source):
            renamed = replay.rename(resident)
            device = self._device.get(renamed, device)
            self._resident[device] = renamed
        else:
            for template_label, label in zip(replay.template.input_labels, replay.input_labels, strict=True):
                if template_label is not None and label is not None and template_label[0] == device:
                    device = label[0]
        assert spec.shape is not None
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=device)

    def all_mixes(self) -> dict[Mix, set[str]]:
        """The operations that combined devices, those of replayed layers included."""
        mixes: dict[Mix, set[str]] = defaultdict(set)
        for mix, operations in self.mixes.items():
            mixes[mix] |= operations
        for replay in self.replays:

            def renamed(name: str, replay: Replay = replay) -> str:
                return replay.rename(name) if is_under(name, replay.source) else name

            for mix, operations in list(mixes.items()):
                if is_under(mix.module, replay.source):
                    hooked = None if mix.hooked is None else renamed(mix.hooked)
                    atoms = frozenset(map(renamed, mix.atoms))
                    mixes[Mix(module=renamed(mix.module), atoms=atoms, hooked=hooked)] |= operations
        return dict(mixes)


def _like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A fake tensor of the same shape and strides on `device`, created by one operation."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value if value.device == device else value.to(device)
    if isinstance(value, (tuple, list)):
        items = [_moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict or (isinstance(value, dict) and hasattr(value, "to_tuple")):
        moved = {key: _moved(item, device) for key, item in value.items()}
        return type(value)(**moved) if type(value) is not dict else moved
    return value
