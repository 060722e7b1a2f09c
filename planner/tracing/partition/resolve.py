"""From what a trace saw to roles: what row-parallel weights sum over, in which sets, and who makes them."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from planner.tracing.forwards import Replay
from planner.tracing.partition.context import Context, Kind
from planner.tracing.partition.feature_sets import Ids, distinct_pairs
from planner.tracing.partition.schema import Groups, ParameterPartition, PartitionKind, PartitionSpec

_UNSEEN = -1


class Circuit:
    """Row-parallel parameters that share sets, and those sets in order, by family.

    Attributes:
        name: its first row-parallel parameter.
        families: labels of the sets, one array for each family.
    """

    def __init__(self, name: str, labels: Ids, makers: Ids) -> None:
        """`makers` has one number for all labels whose features the same weights make."""
        self.name = name
        numbers, first = np.unique(makers[labels], return_index=True)
        self.families = [labels[makers[labels] == number] for number in numbers[np.argsort(first)]]

    @property
    def num_groups(self) -> int:
        """What a degree must divide."""
        return int(np.gcd.reduce([len(family) for family in self.families]))

    def groups(self, labels: Ids) -> tuple[Groups, ...]:
        """For each family the group of every index whose label is given."""
        found = []
        for family in self.families:
            order = np.argsort(family)
            place = np.minimum(np.searchsorted(family[order], labels), len(family) - 1)
            found.append(np.where(family[order][place] == labels, order[place], -1))
        return tuple(found)


class Resolver:
    """Reads a context after the forward."""

    def __init__(self, context: Context, returned: Iterable[Ids]) -> None:
        """`returned` are ids of what must be whole: the model's outputs, and what every rank holds."""
        self._context = context
        self._labels = context.sets.labels()
        self._returned = {int(label) for ids in returned for label in np.unique(self._labels[ids])} - {0}
        self._dims: dict[tuple[str, Kind], list[int]] = {}
        for name, kind, dim in context.uses:
            self._dims.setdefault((name, kind), []).append(dim)
        self._inputs = self._row_inputs()
        self._circuit_of = np.full(len(self._labels), _UNSEEN)
        self._circuits = self._find_circuits()

    def parameters(self) -> dict[str, ParameterPartition]:
        """Roles of the parameters that the trace met."""
        found: dict[str, ParameterPartition | None] = {
            name: self._role("row", name, dim, labels) for name, (dim, labels) in self._inputs.items()
        }
        for name in self._names("output"):
            found.setdefault(name, self._cut(name, "output", "column"))
        for name in self._names("elementwise"):
            if found.get(name) is None:
                found[name] = self._cut(name, "elementwise", "elementwise")
        return {name: role for name, role in found.items() if role is not None}

    def constants(self) -> tuple[str, ...]:
        """Modules that use a tensor, no parameter, of which every group needs its own part."""
        cut = []
        for (module, _), pairs in self._context.constants.items():
            labels = self._function(pairs, int(max(p[:, 0].max() for p in pairs)) + 1)
            if labels is not None and self._is_cut(labels):
                cut.append(module)
        return tuple(dict.fromkeys(cut))

    # ---- what each index meets
    def _names(self, kind: Kind) -> list[str]:
        return [name for name, of_kind in self._dims if of_kind == kind]

    def _assigned(self, name: str, kind: Kind, dim: int) -> Ids | None:
        """The set of each index of a dimension, 0 for none; None where an index meets several."""
        pairs = self._context.uses[name, kind, dim]
        return self._function(pairs, self._context.shapes[name][dim])

    def _function(self, pairs: list[Ids], extent: int) -> Ids | None:
        together = np.concatenate(pairs)
        together = distinct_pairs(together[:, 0], self._labels[together[:, 1]])
        if len(np.unique(together[:, 0])) != len(together):
            return None
        labels = np.full(extent, _UNSEEN)
        labels[together[:, 0]] = together[:, 1]
        return labels

    def _row_inputs(self) -> dict[str, tuple[int, Ids]]:
        found: dict[str, tuple[int, Ids]] = {}
        for name in self._names("input"):
            for dim in self._dims[name, "input"]:
                labels = self._assigned(name, "input", dim)
                if labels is None or (labels <= 0).any() or len(np.unique(labels)) < 2:
                    continue
                if not self._returned.intersection(np.unique(labels).tolist()):
                    found.setdefault(name, (dim, labels))
        return found

    # ---- circuits
    def _find_circuits(self) -> list[Circuit]:
        """The circuits; `_circuit_of` gets the number of each label's."""
        root = list(range(len(self._inputs)))
        owner = np.full(len(self._labels), _UNSEEN)
        for number, (_, labels) in enumerate(self._inputs.values()):
            for other in np.unique(owner[labels]).tolist():
                if other != _UNSEEN:
                    root = [root[number] if r == root[other] else r for r in root]
            owner[labels] = number
        makers = self._makers()
        circuits: list[Circuit] = []
        for one in dict.fromkeys(root):
            names = [name for name, r in zip(self._inputs, root, strict=True) if r == one]
            every = np.concatenate([self._inputs[name][1] for name in names])
            _, first = np.unique(every, return_index=True)
            self._circuit_of[every] = len(circuits)
            circuits.append(Circuit(names[0], every[np.sort(first)], makers))
        return circuits

    def _makers(self) -> Ids:
        """For each label a number that says which weights make its features."""
        numbers = np.zeros(len(self._labels), dtype=np.int64)
        for name in self._names("output"):
            for dim in self._dims[name, "output"]:
                labels = self._assigned(name, "output", dim)
                if labels is not None:
                    made = np.unique(labels[labels > 0])
                    _, kinds = np.unique(numbers[made], return_inverse=True)
                    numbers[made] = numbers.max() + 1 + kinds
        return numbers

    def _in_circuits(self, labels: Ids) -> Ids:
        """The circuit of each index that has one."""
        inside = labels[labels > 0]
        found: Ids = self._circuit_of[inside[self._circuit_of[inside] != _UNSEEN]]
        return found

    def _is_cut(self, labels: Ids) -> bool:
        """Whether the indices belong to several groups, all of one circuit."""
        seen = labels[labels > 0]
        inside = seen[self._circuit_of[seen] != _UNSEEN]
        return len(np.unique(inside)) > 1 and len(np.unique(self._circuit_of[inside])) == 1

    def _cut(self, name: str, kind: Kind, role: PartitionKind) -> ParameterPartition | None:
        for dim in self._dims[name, kind]:
            labels = self._assigned(name, kind, dim)
            if labels is None and kind == "elementwise":
                labels = self._in_every_circuit(name, dim)
            if labels is None:
                continue
            if self._is_cut(labels):
                return self._role(role, name, dim, labels)
        return None

    def _in_every_circuit(self, name: str, dim: int) -> Ids | None:
        """What each index meets in one of several circuits, if it meets the same group in all.

        A table of position biases serves the heads of many layers.
        """
        pairs = np.concatenate(self._context.uses[name, "elementwise", dim])
        labels = self._labels[pairs[:, 1]]
        circuits = [self._circuits[number] for number in np.unique(self._in_circuits(labels)).tolist()]
        first: Ids | None = None
        groups: tuple[Groups, ...] = ()
        for circuit in circuits:
            inside = np.isin(labels, np.concatenate(circuit.families))
            one = self._function([pairs[inside]], self._context.shapes[name][dim])
            if one is None:
                return None
            if first is None:
                first, groups = one, circuit.groups(one)
            elif not all(map(np.array_equal, circuit.groups(one), groups)):
                return None
        return first

    def _role(self, role: PartitionKind, name: str, dim: int, labels: Ids) -> ParameterPartition:
        circuit = self._circuits[int(self._in_circuits(labels)[0])]
        families = circuit.groups(labels)
        cut = np.any([groups >= 0 for groups in families], axis=0)
        return ParameterPartition(
            role=role,
            dim=dim,
            families=families,
            family_sizes=tuple(len(family) for family in circuit.families),
            num_groups=circuit.num_groups,
            sharded=float(cut.mean()),
            meets=circuit.name,
        )


def replayed(
    parameters: dict[str, ParameterPartition], replays: list[Replay]
) -> dict[str, ParameterPartition]:
    """The same for the layers that did not run."""
    found = dict(parameters)
    for replay in replays:
        inside = replay.source + "."
        for name, role in list(found.items()):
            if name.startswith(inside):
                found.setdefault(replay.rename(name), _renamed(role, replay))
    return found


def _renamed(role: ParameterPartition, replay: Replay) -> ParameterPartition:
    if not role.meets.startswith(replay.source + "."):
        return role
    return dataclasses.replace(role, meets=replay.rename(role.meets))


def all_names(
    found: PartitionSpec, names: list[str], aliases: dict[str, str]
) -> dict[str, ParameterPartition]:
    """In the order of the model's parameters, every name of a shared one included."""
    listed = {name: found.parameters.get(aliases.get(name, name)) for name in names}
    return {name: role for name, role in listed.items() if role is not None}
