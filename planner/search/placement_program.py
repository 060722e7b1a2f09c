"""The exact best placement at one batch size: an integer program over interchangeable units.

Units of equal structure form one class (see `planner.search.unit_classes`), so a model of 126 layers becomes
a program of a few dozen integers: how many units of each class run on the CPU, and how many leaves of each
kind are streamed. The peak of activations and staged modules is a variable per device and phase.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from planner.cost.assignment import Assignment, kind_of
from planner.cost.memory import least_peak, runtime_term, stored_weights
from planner.cost.memory_terms import MIB, TRANSIENT_FACTOR
from planner.cost.problem import CPU, DISK, Problem
from planner.schema.breakdown import PHASES
from planner.search.costs import cpu_premium_s, streaming_s
from planner.search.integer_program import IntegerProgram
from planner.search.unit_classes import Counts, LeafKind, UnitClass, assignment_of, classes_of

#: Part of every capacity that stays free, in MiB, so that a solution within the solver's tolerance fits to
#: the byte. The program counts in MiB, because coefficients near one keep its rounding errors small.
_MARGIN_MIB: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedPlacement:
    """A solution of the program.

    Attributes:
        assignment: where every unit runs and every leaf is stored.
        shortage_bytes: device → bytes missing; empty when it fits.
    """

    assignment: Assignment
    shortage_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns of one class of units.

    Attributes:
        on_cpu: number of units that run on the CPU; None where none may.
        streamed: for each kind of leaf, place → number of leaves that are streamed from there.
    """

    on_cpu: int | None
    streamed: tuple[dict[str, int], ...]


def solve(problem: Problem, staged: Mapping[int, str]) -> SolvedPlacement | None:
    """The fastest placement that fits, or None.

    Args:
        problem: the priced scenario.
        staged: unit index → GPU, for the units of later pipeline stages.
    """
    return _Program(problem, staged, elastic=False).solve()


def nearest(problem: Problem, staged: Mapping[int, str]) -> SolvedPlacement:
    """The placement with the smallest total shortage, for when `solve` finds none; arguments as there."""
    solved = _Program(problem, staged, elastic=True).solve()
    if solved is None:
        raise AssertionError("an elastic program always has a solution")
    return solved


class _Program:
    """The integer program of one problem: it is built in the constructor; `solve` reads the solution.

    An elastic program may exceed capacities, and minimises the bytes by which it does instead of seconds.
    """

    def __init__(self, problem: Problem, staged: Mapping[int, str], *, elastic: bool) -> None:
        self.problem = problem
        self.staged = staged
        self.elastic = elastic
        self.ip = IntegerProgram()
        self.classes = classes_of(problem, staged)
        self.main = problem.scenario.execution.main
        fits_on_disk = problem.disk_deficit_bytes == 0
        self.places = [
            place for place in problem.scenario.execution.streams_from if place != DISK or fits_on_disk
        ]
        # In a fixed order, so that the solver always finds the same one of equally good placements.
        self.used: dict[str, dict[str, dict[int, float]]] = {
            device: {phase: {} for phase in PHASES} for device in dict.fromkeys((self.main, CPU))
        }
        self.fixed: dict[str, dict[str, float]] = {device: dict.fromkeys(PHASES, 0.0) for device in self.used}
        self.peaks = {
            (device, phase): self.ip.column(integral=False) for device in self.used for phase in PHASES
        }
        self.columns = [self._class_columns(unit_class) for unit_class in self.classes]
        self._capacities()
        if self.main != CPU and problem.scenario.runtime_model.needs_resident:
            self._keep_one_resident()

    def solve(self) -> SolvedPlacement | None:
        """The solution as an assignment, or None when the program is infeasible."""
        solution = self.ip.solve()
        if solution is None:
            return None
        _, values = solution
        shortage = {
            device: round(values[column] * MIB)
            for device, column in self.shortage.items()
            if values[column] * MIB >= 1
        }
        return SolvedPlacement(assignment=self._assignment(values), shortage_bytes=shortage)

    # -- columns -----------------------------------------------------------------------------------

    def _class_columns(self, units: UnitClass) -> _Columns:
        count = len(units.indices)
        may_run_on_cpu = (
            self.problem.scenario.execution.cpu_execution
            and self.main != CPU
            # A single embedding or norm computes almost nothing, so running it on the CPU gains nothing.
            and units.price.unit.is_block
            and not units.price.unit.pinned_to_main
            and CPU in units.price.work
        )
        on_cpu = None
        self._add_resident(units, count)
        if may_run_on_cpu:
            on_cpu = self.ip.column(cost=self._cost(cpu_premium_s(self.problem, units.price)), upper=count)
            self._move_to_cpu(units, on_cpu)
        streamed = []
        for kind in units.kinds:
            is_moved = kind.price.streamable and kind.price.stored_bytes > 0
            limit = count * len(kind.positions)
            streamed.append(
                {place: self._stream(kind, limit, stored_on=place) for place in self.places if is_moved}
            )
            self._bind(kind, count, on_cpu, streamed[-1].values())
        return _Columns(on_cpu, tuple(streamed))

    def _cost(self, seconds: float) -> float:
        """The cost of a column; 0 in an elastic program, which minimises missing bytes only."""
        return 0.0 if self.elastic else seconds

    def _add_resident(self, units: UnitClass, count: int) -> None:
        """Memory of all units resident on the main device, to which the columns add differences."""
        for phase in PHASES:
            resident = units.price.resident(kind_of(self.main), phase)
            self.fixed[self.main][phase] += count * resident.charged_bytes / MIB

    def _move_to_cpu(self, units: UnitClass, on_cpu: int) -> None:
        """Each unit on the CPU moves its weights, buffers and cache there.

        The main device has the class's peak while any unit is left there, the CPU while any unit runs there.
        """
        price, count = units.price, len(units.indices)
        any_on_main = self.ip.column(upper=1)
        self.ip.row({any_on_main: count, on_cpu: 1}, lower=count)  # 1 unless all of them run on the CPU
        any_on_cpu = self.ip.column(upper=1)
        self.ip.row({any_on_cpu: count, on_cpu: -1}, lower=0)
        for phase in PHASES:
            freed, taken = price.resident(kind_of(self.main), phase), price.resident(CPU, phase)
            _accumulate(self.used[self.main][phase], on_cpu, -freed.charged_bytes / MIB)
            _accumulate(self.used[CPU][phase], on_cpu, taken.charged_bytes / MIB)
            self._peak_at_least(self.main, phase, price.peak[phase], any_on_main)
            self._peak_at_least(CPU, phase, price.peak[phase], any_on_cpu)

    def _stream(self, kind: LeafKind, limit: int, *, stored_on: str) -> int:
        """The column of leaves of this kind that are streamed to the main device from `stored_on`."""
        cost = self._cost(streaming_s(self.problem, kind.price, stored_on))
        column = self.ip.column(cost=cost, upper=limit)
        freed = stored_weights(self.problem, kind.price, self.main, self.main).charged_bytes / MIB
        taken = stored_weights(self.problem, kind.price, stored_on, self.main).charged_bytes / MIB
        any_streamed = self.ip.column(upper=1)
        self.ip.row({any_streamed: limit, column: -1}, lower=0)
        for phase in PHASES:
            _accumulate(self.used[self.main][phase], column, -freed)
            if stored_on == CPU:
                _accumulate(self.used[CPU][phase], column, taken)
            self._peak_at_least(self.main, phase, kind.price.streamed_peak[phase], any_streamed)
        return column

    # -- rows --------------------------------------------------------------------------------------

    def _bind(self, kind: LeafKind, count: int, on_cpu: int | None, streamed: Collection[int]) -> None:
        """Streamed leaves belong to units that run on the main device."""
        if not streamed:
            return
        size = len(kind.positions)
        row: dict[int, float] = dict.fromkeys(streamed, 1.0)
        if on_cpu is not None:
            row[on_cpu] = float(size)
        self.ip.row(row, upper=count * size)

    def _keep_one_resident(self) -> None:
        """At least one leaf must be stored on the main GPU."""
        row: dict[int, float] = {}
        total = 0
        for units, columns in zip(self.classes, self.columns, strict=True):
            for number, kind in enumerate(units.kinds):
                if not kind.price.leaf.entries:
                    continue
                total += len(units.indices) * len(kind.positions)
                for column in columns.streamed[number].values():
                    _accumulate(row, column, 1.0)
                if columns.on_cpu is not None:
                    _accumulate(row, columns.on_cpu, float(len(kind.positions)))
        if row:
            self.ip.row(row, upper=total - 1)

    def _peak_at_least(self, device: str, phase: str, num_bytes: int, switch: int) -> None:
        """The device's peak is at least `num_bytes` when the 0-1 column `switch` is 1."""
        self.ip.row({self.peaks[device, phase]: 1.0, switch: -num_bytes / MIB}, lower=0)

    def _capacities(self) -> None:
        """One row per device and phase, and lower bounds of the peaks that hold for every choice."""
        self.shortage: dict[str, int] = {}
        for device in self.used:
            available = self.problem.capacities[device].available_bytes / MIB - _MARGIN_MIB
            if self.elastic:
                self.shortage[device] = self.ip.column(cost=1.0, integral=False)
            for phase in PHASES:
                if self.problem.weight(phase) == 0 and phase == "decode":
                    continue
                self._capacity_row(device, phase, available)

    def _capacity_row(self, device: str, phase: str, available_mib: float) -> None:
        coefficients = dict(self.used[device][phase])
        coefficients[self.peaks[device, phase]] = TRANSIENT_FACTOR
        if self.elastic:
            coefficients[self.shortage[device]] = -1.0
        # The program is solved only where something must be streamed, so the buffers for that are needed.
        runtime = runtime_term(self.problem, self.problem.units, device, phase, streams=True)
        if device == self.main:
            always_on_main = [
                units.price
                for units, columns in zip(self.classes, self.columns, strict=True)
                if columns.on_cpu is None
            ]
            least = least_peak(self.problem, always_on_main, device, phase)
            self.ip.row({self.peaks[device, phase]: 1.0}, lower=least / MIB)
        fixed = self.fixed[device][phase] + runtime.charged_bytes / MIB
        self.ip.row(coefficients, upper=available_mib - fixed)

    # -- reading -----------------------------------------------------------------------------------

    def _assignment(self, values: list[float]) -> Assignment:
        counted = [
            (units, _counts(values, columns))
            for units, columns in zip(self.classes, self.columns, strict=True)
        ]
        return assignment_of(self.problem, self.staged, counted)


def _counts(values: list[float], columns: _Columns) -> Counts:
    return Counts(
        on_cpu=0 if columns.on_cpu is None else round(values[columns.on_cpu]),
        streamed=tuple(
            {place: round(values[column]) for place, column in by_place.items()}
            for by_place in columns.streamed
        ),
    )


def _accumulate(row: dict[int, float], column: int, coefficient: float) -> None:
    row[column] = row.get(column, 0.0) + coefficient
