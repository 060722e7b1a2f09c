"""From device mixes to no-split blocks, co-location constraints and leaks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec
from torch import nn

from planner.tracing.forwards import is_under
from planner.tracing.placement_tracer import ON_HOST, ON_MAIN, Mix

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class Units(msgspec.Struct, frozen=True, kw_only=True):
    """What must execute in one place.

    Attributes:
        units: smallest such modules.
        blocks: the outermost stack elements that hold them: the no-split blocks.
    """

    units: tuple[str, ...]
    blocks: tuple[str, ...]


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """What is left to respect once the units are hooked.

    Attributes:
        co_located: groups of atoms that an operation of a splittable container combines.
        main_device: atoms that are combined with the root's own tensors.
        leaks: sentences on mixes inside a hooked module, which no placement mends.
    """

    co_located: tuple[tuple[str, ...], ...]
    main_device: tuple[str, ...]
    leaks: tuple[str, ...]


def find_units(model: nn.Module, atoms: Iterable[str], mixes: Mapping[Mix, set[str]]) -> Units:
    """No-split units and blocks from a trace in which every atom had a device of its own."""
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
    """What still mixes in a trace in which the blocks were hooked."""
    groups: dict[tuple[str, ...], None] = {}
    main: dict[str, None] = {}
    leaks: dict[str, None] = {}
    for mix, operations in mixes.items():
        atoms = tuple(sorted(a for a in mix.atoms if a not in (ON_MAIN, ON_HOST)))
        if mix.hooked is not None:
            names = ", ".join(sorted(mix.atoms))
            where = f"{mix.module or 'the root'} (inside {mix.hooked})"
            leaks[f"{where} combines {names} in {', '.join(sorted(operations))}"] = None
        elif ON_MAIN in mix.atoms:
            main.update(dict.fromkeys(atoms))
        elif len(atoms) > 1:
            groups[atoms] = None
    return Constraints(co_located=_merged(groups), main_device=tuple(main), leaks=tuple(leaks))


def _mixing_modules(atoms: Iterable[str], mixes: Mapping[Mix, set[str]]) -> dict[str, bool]:
    """Modules whose own forward mixes; True where something from outside the module is in the mix.

    A mix in a module that holds no atom is its nearest ancestor's that does.
    """
    holders = {ancestor for atom in atoms for ancestor in _upwards(atom)}
    found: dict[str, bool] = defaultdict(bool)
    for mix in mixes:
        if mix.hooked is not None:
            continue
        module = next(name for name in _upwards(mix.module) if name in holders or not name)
        sources = {a for a in mix.atoms if a not in (ON_MAIN, ON_HOST)}
        found[module] |= any(not is_under(a, module) for a in sources)
    return found


def _stacks(modules: dict[str, nn.Module], mixing: dict[str, bool]) -> tuple[set[str], set[str]]:
    """Elements of layer stacks, and every module that contains a stack.

    A stack is a list of modules of which two or more add to what came from outside (a residual).
    """
    residual = {a for name, outside in mixing.items() if outside for a in _upwards(name)}
    elements: set[str] = set()
    spine: set[str] = set()
    for name, module in modules.items():
        if isinstance(module, _LISTS):
            found = [e for key in module._modules if (e := f"{name}.{key}") in residual]
            if len(found) > 1:
                elements.update(found)
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
    """Groups with a common member become one."""
    merged: list[list[str]] = []
    for group in groups:
        touching = [m for m in merged if set(m) & set(group)]
        united = list(dict.fromkeys([name for m in touching for name in m] + list(group)))
        merged = [m for m in merged if m not in touching] + [united]
    return tuple(tuple(group) for group in merged)
