"""The chain that a plan places: placement units in execution order, each with the leaves it can stream.

A *unit* runs on one device: a no-split block, a single module outside the blocks, or modules that a tied
weight or a co-location constraint joins. A *leaf* is one entry of a device map: the smallest subtree whose
root owns weights. Leaves of one unit may be stored in different places; all of them run where the unit runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from planner.graph.schema import ModuleGraph, Node, Tensor
from reshard.dtypes import dtype as dtype_named


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedTensor:
    """A tensor that a module of a leaf owns.

    Attributes:
        fqn: its full name in the model.
        tensor: shape, kind and dtype.
        canonical: False for a tied tensor whose bytes are counted at another owner.
    """

    fqn: str
    tensor: Tensor
    canonical: bool

    def num_bytes(self, itemsize_bytes: int) -> int:
        """Bytes of the tensor in a model whose dtype takes `itemsize_bytes` per element."""
        own = self.tensor.dtype
        size = itemsize_bytes if own is None else dtype_named(own).itemsize_bytes
        return self.tensor.num_elements * size


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What is stored in one place: one entry of a device map, or entries that a tied tensor joins.

    Attributes:
        entries: fqns of the subtrees; none for a container that keeps scratch buffers only.
        modules: the modules in it that own tensors, in execution order; Accelerate hooks each.
        tensors: what each of them owns, in the same order.
    """

    entries: tuple[str, ...]
    modules: tuple[Node, ...]
    tensors: tuple[tuple[OwnedTensor, ...], ...]

    def stored_bytes(self, itemsize_bytes: int) -> int:
        """Bytes of the parameters, tied duplicates not counted."""
        return sum(
            t.num_bytes(itemsize_bytes)
            for owned in self.tensors
            for t in owned
            if t.tensor.kind == "parameter" and t.canonical
        )

    def buffer_bytes(self, itemsize_bytes: int) -> int:
        """Bytes of the buffers, which stay on the device that the module runs on."""
        return sum(
            t.num_bytes(itemsize_bytes)
            for owned in self.tensors
            for t in owned
            if t.tensor.kind != "parameter"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Modules that run on one device.

    Attributes:
        name: the block's fqn, or the first module's.
        nodes: every module in it that has tensors or operations, in execution order.
        leaves: its entries in a device map.
        pinned_to_main: the runtime runs it on the main device, whatever a device map says.
        is_block: it is one no-split block.
        is_chain: all of it is at one position of the chain, so that a pipeline stage can end before it.
        key: equal for units that differ only in their names.
    """

    name: str
    nodes: tuple[Node, ...]
    leaves: tuple[Leaf, ...]
    pinned_to_main: bool
    is_block: bool
    is_chain: bool
    key: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The whole model as placement units, and the modules that belong to none.

    Attributes:
        units: in execution order.
        glue: modules outside every placement unit (masks, position ids): they own no tensors and run on the
            main device.
    """

    units: tuple[Unit, ...]
    glue: tuple[Node, ...]


def chain_of(graph: ModuleGraph, groups: Sequence[Sequence[str]]) -> Chain:
    """The chain of a graph.

    Args:
        graph: the traced model.
        groups: fqns of tensor-owning modules that must run on one device, from
            `planner.graph.groups.placement_units`.
    """
    by_name = {node.name: node for node in graph.nodes}
    entries = _entries(graph)
    groups = _merged(groups, entries)
    duplicates = {fqn for group in graph.ties for fqn in group[1:]}
    owner_of_block = {by_name[m].block: index for index, group in enumerate(groups) for m in group}
    members: list[list[Node]] = [[by_name[m] for m in group] for group in groups]
    glue: list[Node] = []
    for node in graph.nodes:
        if node.tensors:
            continue
        index = owner_of_block.get(node.block) if node.block is not None else None
        (members[index] if index is not None else glue).append(node)
    main = set(graph.main_device)
    above = _above_blocks(graph)
    bare = {n.name for n in graph.nodes if n.name in above and _is_scratch(n)}
    units = tuple(
        _unit(sorted(nodes, key=lambda n: n.order), entries, graph.ties, duplicates, main, bare)
        for nodes in members
        if nodes
    )
    return Chain(units=tuple(sorted(units, key=lambda u: u.nodes[0].order)), glue=tuple(glue))


def _merged(groups: Sequence[Sequence[str]], entries: dict[str, str]) -> list[list[str]]:
    """Groups that share an entry become one: one entry of a map has one place and one device."""
    merged: list[list[str]] = []
    for group in groups:
        touched = {entries[name] for name in group}
        sharing = [g for g in merged if any(entries[name] in touched for name in g)]
        merged = [g for g in merged if g not in sharing]
        merged.append([name for g in sharing for name in g] + list(group))
    return merged


def _unit(
    nodes: list[Node],
    entries: dict[str, str],
    ties: Sequence[Sequence[str]],
    duplicates: set[str],
    main: set[str],
    bare: set[str],
) -> Unit:
    owners = [n for n in nodes if n.tensors]
    by_entry: dict[str, list[Node]] = {}
    for node in owners:
        by_entry.setdefault(entries[node.name], []).append(node)
    joined = _joined(tuple(by_entry), ties)
    leaves = tuple(
        _leaf(
            tuple(name for name in names if name not in bare),
            [node for name in names for node in by_entry[name]],
            duplicates,
        )
        for names in joined
    )
    blocks = {n.block for n in nodes}
    block = next(iter(blocks)) if len(blocks) == 1 else None
    name = block or owners[0].name
    return Unit(
        name=name,
        nodes=tuple(nodes),
        leaves=leaves,
        pinned_to_main=any(n.name in main for n in nodes),
        is_block=block is not None,
        is_chain=block is not None or len(owners) == 1,
        key=_structure_key(name, nodes, leaves),
    )


def _joined(entries: tuple[str, ...], ties: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Entries grouped so that all owners of a tied tensor are in one group."""
    groups = [{entry} for entry in entries]
    for tie in ties:
        touched = [g for g in groups if any(_owns(entry, fqn) for entry in g for fqn in tie)]
        if len(touched) > 1:
            groups = [g for g in groups if g not in touched] + [set().union(*touched)]
    ordered = [tuple(sorted(group, key=entries.index)) for group in groups]
    return sorted(ordered, key=lambda group: entries.index(group[0]))


def _owns(entry: str, fqn: str) -> bool:
    return fqn.startswith(f"{entry}.") if entry else "." not in fqn


def _leaf(entries: tuple[str, ...], modules: Iterable[Node], duplicates: set[str]) -> Leaf:
    modules = tuple(modules)
    owned = tuple(
        tuple(
            OwnedTensor(fqn=fqn, tensor=t, canonical=fqn not in duplicates)
            for t in node.tensors
            for fqn in (f"{node.name}.{t.name}" if node.name else t.name,)
        )
        for node in modules
    )
    return Leaf(entries=entries, modules=modules, tensors=owned)


def _entries(graph: ModuleGraph) -> dict[str, str]:
    """Map entry of every tensor-owning module: the outermost ancestor that owns tensors itself.

    Scratch buffers (non-persistent ones) count: from_pretrained leaves those that no entry covers on the CPU,
    and an attention module whose mask is there fails on a GPU. A container of scratch buffers that contains
    blocks is no entry, or all blocks would be one entry; nor is the root, which a map cannot name beside its
    children.
    """
    nodes = [n for n in graph.nodes if n.tensors]
    above = _above_blocks(graph)
    stateful = {n.name for n in nodes if n.name and not (n.name in above and _is_scratch(n))}
    result = {}
    for node in nodes:
        parts = node.name.split(".")
        ancestors = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        result[node.name] = next((a for a in ancestors if a in stateful), node.name)
    return result


def _above_blocks(graph: ModuleGraph) -> set[str]:
    """Modules that contain a no-split block."""
    paths = [block.split(".") for block in graph.blocks]
    return {".".join(path[:depth]) for path in paths for depth in range(len(path))}


def _is_scratch(node: Node) -> bool:
    return all(t.kind == "scratch" for t in node.tensors)


def _structure_key(name: str, nodes: Sequence[Node], leaves: Sequence[Leaf]) -> bytes:
    """A key that is equal for units that differ only in their names: a search may interchange them."""

    def relative(fqn: str) -> str:
        return fqn.removeprefix(name)

    canonical = [t.canonical for leaf in leaves for owned in leaf.tensors for t in owned]
    described = [(relative(n.name), n.num_calls, n.tensors, n.costs, n.kv) for n in nodes]
    return msgspec.json.encode(
        (described, canonical, [[relative(e) for e in leaf.entries] for leaf in leaves])
    )
