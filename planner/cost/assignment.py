"""A choice of places for everything that a problem places."""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.cost.problem import GPU, LeafPrice, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One choice for every unit and leaf of a problem.

    Attributes:
        executes: per unit, `gpu:N` or `cpu`.
        lives: per unit and leaf, the unit's device, or a place to stream from: `cpu`, `disk` or `peers`.
    """

    executes: tuple[str, ...]
    lives: tuple[tuple[str, ...], ...]

    @property
    def places(self) -> frozenset[str]:
        """Every device that something lives or executes on."""
        return frozenset(self.executes).union(*self.lives) if self.lives else frozenset(self.executes)


def kind_of(device: str) -> str:
    """`gpu:3` is a `gpu`."""
    return GPU if device.startswith("gpu:") else device


def leaves(problem: Problem, assignment: Assignment) -> Iterable[tuple[str, LeafPrice, str]]:
    """Where each leaf's unit executes, the leaf, and where it lives."""
    for unit, executes, lives in zip(problem.units, assignment.executes, assignment.lives, strict=True):
        for leaf, place in zip(unit.leaves, lives, strict=True):
            yield executes, leaf, place
