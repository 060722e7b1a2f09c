"""Units and leaves that no number tells apart, grouped: what an integer program counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.cost.assignment import Assignment
from planner.cost.problem import CPU, LeafPrice, Problem, UnitPrice


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafKind:
    """Leaves of one class that no number tells apart."""

    price: LeafPrice
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitClass:
    """Units that no number tells apart.

    Attributes:
        indices: their places in the problem, in execution order.
        price: any one of them.
        kinds: their leaves, grouped.
    """

    indices: tuple[int, ...]
    price: UnitPrice
    kinds: tuple[LeafKind, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much of a class leaves the main device.

    Attributes:
        on_cpu: units that execute on the CPU.
        streamed: for each kind, place → leaves that are streamed from there.
    """

    on_cpu: int
    streamed: tuple[dict[str, int], ...]


def classes_of(problem: Problem, staged: Mapping[int, str]) -> tuple[UnitClass, ...]:
    """The units not yet staged elsewhere, grouped.

    Equal structures are not enough: a runtime that fetches ahead stages more for the block before a large
    head than for the blocks before it.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, unit in enumerate(problem.units):
        if index not in staged:
            peaks = tuple(tuple(leaf.streamed_peak.values()) for leaf in unit.leaves)
            groups.setdefault((unit.unit.key, unit.unit.pinned_to_main, peaks), []).append(index)
    return tuple(
        UnitClass(
            indices=tuple(indices),
            price=problem.units[indices[0]],
            kinds=_kinds(problem.units[indices[0]].leaves),
        )
        for indices in groups.values()
    )


def _kinds(leaves: Sequence[LeafPrice]) -> tuple[LeafKind, ...]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, leaf in enumerate(leaves):
        key = (
            leaf.stored_bytes,
            leaf.moved_bytes,
            leaf.num_tensors,
            leaf.streamable,
            tuple(leaf.forwards.values()),
            tuple(leaf.streamed_peak.values()),
        )
        groups.setdefault(key, []).append(position)
    return tuple(LeafKind(price=leaves[at[0]], positions=tuple(at)) for at in groups.values())


def assignment_of(
    problem: Problem, staged: Mapping[int, str], counted: Sequence[tuple[UnitClass, Counts]]
) -> Assignment:
    """Counts given to particular units and leaves, the last ones of each class.

    Args:
        problem: priced.
        staged: units that other GPUs already hold, by index.
        counted: every class of the other units, with what leaves the main device.
    """
    runs_on = [staged.get(index, problem.scenario.execution.main) for index in range(len(problem.units))]
    stored_on = [[device] * len(unit.leaves) for device, unit in zip(runs_on, problem.units, strict=True)]
    for one, counts in counted:
        # The last units leave: a run of them hands the residual stream over once.
        stay = one.indices[: len(one.indices) - counts.on_cpu]
        for index in one.indices[len(stay) :]:
            runs_on[index] = CPU
            stored_on[index] = [CPU] * len(one.price.leaves)
        for kind, streamed in zip(one.kinds, counts.streamed, strict=True):
            slots = [(index, position) for index in stay for position in kind.positions]
            places = [place for place, count in streamed.items() for _ in range(count)]
            for (index, position), place in zip(slots[len(slots) - len(places) :], places, strict=True):
                stored_on[index][position] = place
    return Assignment(runs_on=tuple(runs_on), stored_on=tuple(tuple(one) for one in stored_on))
