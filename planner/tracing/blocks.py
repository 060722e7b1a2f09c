"""From operations that combine devices to no-split blocks and other constraints on placement."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec
from torch import nn

from planner.tracing.forwards import is_under
from planner.tracing.placement_tracer import ON_HOST, ON_MAIN, Mix

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class Units(msgspec.Struct, frozen=True, kw_only=True):
    """Modules that must execute on one device.

    Attributes:
        units: the smallest such modules.
        blocks: the outermost elements of layer stacks that contain them: the no-split blocks.
    """

    units: tuple[str, ...]
    blocks: tuple[str, ...]


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """Constraints that remain when the blocks are hooked.

    A placeable item is a leaf module with tensors, or a tensor of a module with submodules.

    Attributes:
        co_located: groups of placeable items that one operation of a module that can be split combines.
        main_device: placeable items that an operation combines with the root's own tensors.
        leaks: sentences about operations that combine devices inside a hooked module, which no placement can
            prevent.
    """

    co_located: tuple[tuple[str, ...], ...]
    main_device: tuple[str, ...]
    leaks: tuple[str, ...]


def find_units(model: nn.Module, atoms: Iterable[str], mixes: Mapping[Mix, set[str]]) -> Units:
    """The smallest modules that must execute on one device, and the no-split blocks.

    Args:
        model: the traced model.
        atoms: the placeable items, each of which had a device of its own in the trace.
        mixes: the operations of the trace that combined several devices, with the names of the operations.
    """
    modules = dict(model.named_modules())
    mixing = _mixing_modules(atoms, mixes)
    elements, spine = _stacks(modules, mixing)
    units: list[str] = []

    def visit(name: str) -> None:
        if name in mixing and (name in elements or name not in spine):
            units.append(name)
            return
        for key in modules[name]._modules:
            child = f"{name}.{key}" if name else key
            if child in modules:
                visit(child)

    visit("")
    tops: list[str] = []
    for unit in units:
        outer = [a for a in _upwards(unit) if a in elements and not isinstance(modules[a], _LISTS[::2])]
        top = outer[-1] if outer else unit
        if top not in tops:
            tops.append(top)
    blocks = [b for b in tops if not any(b != other and is_under(b, other) for other in tops)]
    return Units(units=tuple(units), blocks=tuple(blocks))


def find_constraints(mixes: Mapping[Mix, set[str]]) -> Constraints:
    """Constraints from the operations that combined devices in a trace with hooked blocks."""
    groups: dict[tuple[str, ...], None] = {}
    main_device: dict[str, None] = {}
    leaks: dict[str, None] = {}
    for mix, operations in mixes.items():
        items = tuple(sorted(a for a in mix.atoms if a not in (ON_MAIN, ON_HOST)))
        if mix.hooked is not None:
            names = ", ".join(sorted(mix.atoms))
            where = f"{mix.module or 'the root'} (inside {mix.hooked})"
            leaks[f"{where} combines {names} in {', '.join(sorted(operations))}"] = None
        elif ON_MAIN in mix.atoms:
            main_device.update(dict.fromkeys(items))
        elif len(items) > 1:
            groups[items] = None
    return Constraints(co_located=_merged(groups), main_device=tuple(main_device), leaks=tuple(leaks))


def _mixing_modules(atoms: Iterable[str], mixes: Mapping[Mix, set[str]]) -> dict[str, bool]:
    """Modules whose own forward combines devices; True where a tensor from outside the module is involved.

    An operation in a module without placeable items is attributed to the nearest ancestor that has some.
    """
    holders = {ancestor for atom in atoms for ancestor in _upwards(atom)}
    from_outside: dict[str, bool] = defaultdict(bool)
    for mix in mixes:
        if mix.hooked is not None:
            continue
        module = next(name for name in _upwards(mix.module) if name in holders or not name)
        sources = {a for a in mix.atoms if a not in (ON_MAIN, ON_HOST)}
        from_outside[module] |= any(not is_under(a, module) for a in sources)
    return from_outside


def _stacks(modules: dict[str, nn.Module], mixing: dict[str, bool]) -> tuple[set[str], set[str]]:
    """Elements of layer stacks, and every module that contains a stack.

    A stack is a list of modules of which two or more have a residual connection: they add to their input.
    """
    residual = {a for name, outside in mixing.items() if outside for a in _upwards(name)}
    elements: set[str] = set()
    spine: set[str] = set()
    for name, module in modules.items():
        if isinstance(module, _LISTS):
            with_residual = [e for key in module._modules if (e := f"{name}.{key}") in residual]
            if len(with_residual) > 1:
                elements.update(with_residual)
                spine.update(_upwards(name))
    return elements, spine


def _upwards(name: str) -> list[str]:
    """`name`, its parents, and the root."""
    chain = [name]
    while name:
        name = name.rpartition(".")[0]
        chain.append(name)
    return chain


def _merged(groups: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Merges groups that have a common member."""
    merged: list[list[str]] = []
    for group in groups:
        touching = [m for m in merged if set(m) & set(group)]
        united = list(dict.fromkeys([name for m in touching for name in m] + list(group)))
        merged = [m for m in merged if m not in touching] + [united]
    return tuple(tuple(group) for group in merged)
