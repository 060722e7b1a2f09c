"""Where every unit of a problem runs and where every leaf is stored."""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.cost.problem import GPU, LeafPrice, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One choice for every unit and leaf of a problem.

    Attributes:
        runs_on: per unit, `gpu:N` or `cpu`.
        stored_on: per unit and leaf, the unit's device, or a place to stream from: `cpu`, `disk` or `peers`.
    """

    runs_on: tuple[str, ...]
    stored_on: tuple[tuple[str, ...], ...]

    @classmethod
    def uniform(cls, problem: Problem, runs_on: str, stored_on: str | None = None) -> "Assignment":
        """Every unit on one device, and every leaf stored in one place.

        Args:
            problem: the priced scenario whose units are assigned.
            runs_on: the device of every unit, `gpu:N` or `cpu`.
            stored_on: the place of every leaf, that device or `cpu`, `disk` or `peers`; `runs_on` for None.
        """
        place = runs_on if stored_on is None else stored_on
        return cls(
            runs_on=(runs_on,) * len(problem.units),
            stored_on=tuple((place,) * len(unit.leaves) for unit in problem.units),
        )

    @property
    def places(self) -> frozenset[str]:
        """Every device or place where something is stored or runs."""
        return frozenset(self.runs_on).union(*self.stored_on) if self.stored_on else frozenset(self.runs_on)


def kind_of(device: str) -> str:
    """The kind of a device or place: `gpu` for `gpu:N`; any other is its own kind."""
    return GPU if device.startswith("gpu:") else device


def leaves(problem: Problem, assignment: Assignment) -> Iterable[tuple[str, LeafPrice, str]]:
    """For each leaf: the device that its unit runs on, the leaf, and the place where it is stored."""
    for unit, runs_on, stored_on in zip(problem.units, assignment.runs_on, assignment.stored_on, strict=True):
        for leaf, place in zip(unit.leaves, stored_on, strict=True):
            yield runs_on, leaf, place
