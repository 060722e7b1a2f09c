"""Derives roles from a trace: the sets that row-parallel weights sum over, and their weights."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from planner.tracing.forwards import Replay
from planner.tracing.partition.context import Context, Kind
from planner.tracing.partition.feature_sets import Ids, distinct_pairs
from planner.tracing.partition.schema import Groups, ParameterPartition, PartitionKind, PartitionSpec

_UNSEEN = -1


class Circuit:
    """Row-parallel parameters that share sets of features, with these sets.

    Attributes:
        name: fqn of the first row-parallel parameter.
        families: labels of the sets in order, one array for each family.
    """

    def __init__(self, name: str, labels: Ids, makers: Ids) -> None:
        """Divide the sets into families.

        Args:
            name: fqn of the first row-parallel parameter.
            labels: labels of the sets, in order.
            makers: for each label a number, equal where the same weights compute the features.
        """
        self.name = name
        numbers, first = np.unique(makers[labels], return_index=True)
        self.families = [labels[makers[labels] == number] for number in numbers[np.argsort(first)]]

    @property
    def num_groups(self) -> int:
        """The number that a degree must divide."""
        return int(np.gcd.reduce([len(family) for family in self.families]))

    def groups(self, labels: Ids) -> tuple[Groups, ...]:
        """For each family, the group of every label in `labels`, or -1."""
        groups_of_families = []
        for family in self.families:
            order = np.argsort(family)
            place = np.minimum(np.searchsorted(family[order], labels), len(family) - 1)
            groups_of_families.append(np.where(family[order][place] == labels, order[place], -1))
        return tuple(groups_of_families)


class Resolver:
    """Derives roles from a context after the forward."""

    def __init__(self, context: Context, returned: Iterable[Ids]) -> None:
        """Read the context.

        Args:
            context: the state after the forward.
            returned: ids that must not be cut: those of the model's outputs, and those that every rank holds.
        """
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
        """Roles of the parameters that the trace used and that can be cut."""
        roles: dict[str, ParameterPartition | None] = {
            name: self._role("row", name, dim, labels) for name, (dim, labels) in self._inputs.items()
        }
        for name in self._names("output"):
            roles.setdefault(name, self._cut(name, "output", "column"))
        for name in self._names("elementwise"):
            if roles.get(name) is None:
                roles[name] = self._cut(name, "elementwise", "elementwise")
        return {name: role for name, role in roles.items() if role is not None}

    def constants(self) -> tuple[str, ...]:
        """Modules that use a tensor which is not a parameter and must be cut with the features."""
        cut = []
        for (module, _), pairs in self._context.constants.items():
            labels = self._function(pairs, int(max(p[:, 0].max() for p in pairs)) + 1)
            if labels is not None and self._is_cut(labels):
                cut.append(module)
        return tuple(dict.fromkeys(cut))

    # ---- the set of each index
    def _names(self, kind: Kind) -> list[str]:
        return [name for name, of_kind in self._dims if of_kind == kind]

    def _assigned(self, name: str, kind: Kind, dim: int) -> Ids | None:
        """The set of each index of a dimension, 0 for none; None where an index is used with several sets."""
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
        inputs: dict[str, tuple[int, Ids]] = {}
        for name in self._names("input"):
            for dim in self._dims[name, "input"]:
                labels = self._assigned(name, "input", dim)
                if labels is None or (labels <= 0).any() or len(np.unique(labels)) < 2:
                    continue
                if not self._returned.intersection(np.unique(labels).tolist()):
                    inputs.setdefault(name, (dim, labels))
        return inputs

    # ---- circuits
    def _find_circuits(self) -> list[Circuit]:
        """The circuits; sets `_circuit_of` to the circuit's number for each label."""
        root = list(range(len(self._inputs)))
        owner = np.full(len(self._labels), _UNSEEN)
        for number, (_, labels) in enumerate(self._inputs.values()):
            for other in np.unique(owner[labels]).tolist():
                if other != _UNSEEN:
                    root = [root[number] if r == root[other] else r for r in root]
            owner[labels] = number
        makers = self._makers()
        circuits: list[Circuit] = []
        for circuit_root in dict.fromkeys(root):
            names = [name for name, r in zip(self._inputs, root, strict=True) if r == circuit_root]
            all_labels = np.concatenate([self._inputs[name][1] for name in names])
            _, first = np.unique(all_labels, return_index=True)
            self._circuit_of[all_labels] = len(circuits)
            circuits.append(Circuit(names[0], all_labels[np.sort(first)], makers))
        return circuits

    def _makers(self) -> Ids:
        """For each label a number, equal where the same weights compute the features."""
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
        circuits: Ids = self._circuit_of[inside[self._circuit_of[inside] != _UNSEEN]]
        return circuits

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
        """The set of each index in the first of several circuits, if its group is the same in all of them.

        Several layers share a table of position biases, for example.
        """
        pairs = np.concatenate(self._context.uses[name, "elementwise", dim])
        labels = self._labels[pairs[:, 1]]
        circuits = [self._circuits[number] for number in np.unique(self._in_circuits(labels)).tolist()]
        first: Ids | None = None
        groups: tuple[Groups, ...] = ()
        for circuit in circuits:
            inside = np.isin(labels, np.concatenate(circuit.families))
            of_circuit = self._function([pairs[inside]], self._context.shapes[name][dim])
            if of_circuit is None:
                return None
            if first is None:
                first, groups = of_circuit, circuit.groups(of_circuit)
            elif not all(map(np.array_equal, circuit.groups(of_circuit), groups)):
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
    """`parameters`, and the same roles for layers that were not run."""
    roles = dict(parameters)
    for replay in replays:
        inside = replay.source + "."
        for name, role in list(roles.items()):
            if name.startswith(inside):
                roles.setdefault(replay.rename(name), _renamed(role, replay))
    return roles


def _renamed(role: ParameterPartition, replay: Replay) -> ParameterPartition:
    if not role.meets.startswith(replay.source + "."):
        return role
    return dataclasses.replace(role, meets=replay.rename(role.meets))


def all_names(
    roles: PartitionSpec, names: list[str], aliases: dict[str, str]
) -> dict[str, ParameterPartition]:
    """The roles in the order of the model's parameters, with every name of a shared parameter.

    Args:
        roles: the derived roles.
        names: all names of parameters of the model.
        aliases: other name of a shared parameter → the name that has a role.
    """
    listed = {name: roles.parameters.get(aliases.get(name, name)) for name in names}
    return {name: role for name, role in listed.items() if role is not None}
