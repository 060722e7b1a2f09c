"""Groups of units and of leaves with equal prices, which an integer program counts instead of naming."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.cost.assignment import Assignment
from planner.cost.problem import CPU, LeafPrice, Problem, UnitPrice


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafKind:
    """Leaves of one class of units that have equal prices.

    Attributes:
        price: the price of any of them.
        positions: their positions among the leaves of each unit.
    """

    price: LeafPrice
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitClass:
    """Units of equal structure.

    Attributes:
        indices: their positions in the problem, in execution order.
        price: the price of any of them.
        kinds: their leaves, grouped by equal prices.
    """

    indices: tuple[int, ...]
    price: UnitPrice
    kinds: tuple[LeafKind, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much of a class of units is not resident on the main device.

    Attributes:
        on_cpu: number of units that run on the CPU.
        streamed: for each kind of leaf, place → number of leaves that are streamed from there.
    """

    on_cpu: int
    streamed: tuple[dict[str, int], ...]


def classes_of(problem: Problem, staged: Mapping[int, str]) -> tuple[UnitClass, ...]:
    """The units that are not in a later pipeline stage (`staged`, by unit index), grouped.

    Equal structures are not enough: a runtime that prefetches stages more for the block before a large head
    than for the blocks before it.
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
    return tuple(
        LeafKind(price=leaves[positions[0]], positions=tuple(positions)) for positions in groups.values()
    )


def assignment_of(
    problem: Problem, staged: Mapping[int, str], counted: Sequence[tuple[UnitClass, Counts]]
) -> Assignment:
    """The assignment with these counts: they are taken from the last units and leaves of each class.

    Args:
        problem: the priced scenario.
        staged: unit index → GPU, for the units of later pipeline stages.
        counted: every class of the other units, with its counts.
    """
    runs_on = [staged.get(index, problem.scenario.execution.main) for index in range(len(problem.units))]
    stored_on = [[device] * len(unit.leaves) for device, unit in zip(runs_on, problem.units, strict=True)]
    for units, counts in counted:
        # The last ones, because consecutive units on the CPU copy the residual stream there only once.
        on_main = units.indices[: len(units.indices) - counts.on_cpu]
        for index in units.indices[len(on_main) :]:
            runs_on[index] = CPU
            stored_on[index] = [CPU] * len(units.price.leaves)
        for kind, streamed in zip(units.kinds, counts.streamed, strict=True):
            slots = [(index, position) for index in on_main for position in kind.positions]
            places = [place for place, count in streamed.items() for _ in range(count)]
            for (index, position), place in zip(slots[len(slots) - len(places) :], places, strict=True):
                stored_on[index][position] = place
    return Assignment(runs_on=tuple(runs_on), stored_on=tuple(tuple(places) for places in stored_on))
