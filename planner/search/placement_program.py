"""The best placement at one batch size, exactly: an integer program over interchangeable units.

Units of equal structure are one class (see `planner.search.unit_classes`), so a model of 126 layers is a
program of a few dozen integers: how many units of a class execute on the main device, and of each kind of
leaf in them how many are streamed. The peak of activations and staging is a variable of its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from planner.cost.assignment import Assignment, kind_of
from planner.cost.memory import least_peak, runtime_term, stored_weights
from planner.cost.memory_terms import TRANSIENT_FACTOR
from planner.cost.problem import CPU, DISK, Problem
from planner.schema.breakdown import PHASES
from planner.search.costs import cpu_premium_s, streaming_s
from planner.search.integer_program import IntegerProgram
from planner.search.unit_classes import Counts, LeafKind, UnitClass, assignment_of, classes_of

#: The program counts in MiB: coefficients near one keep the solver's tolerances below a byte's worth.
_MIB: Final = 2**20
#: Kept free of every capacity, so that a solution within tolerance still fits to the byte.
_MARGIN_MIB: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedPlacement:
    """A solved placement.

    Attributes:
        assignment: every unit and leaf.
        shortage_bytes: device → bytes missing; empty when it fits.
    """

    assignment: Assignment
    shortage_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns of one class: units on the CPU, and per kind of leaf and place the streamed ones."""

    on_cpu: int | None
    streamed: tuple[dict[str, int], ...]


def solve(problem: Problem, staged: Mapping[int, str]) -> SolvedPlacement | None:
    """The fastest placement that fits, or None.

    Args:
        problem: priced.
        staged: units that other GPUs already hold, by index.
    """
    return _Program(problem, staged, elastic=False).solve()


def nearest(problem: Problem, staged: Mapping[int, str]) -> SolvedPlacement:
    """The placement that lacks the fewest bytes: what to say when `solve` finds none."""
    placed = _Program(problem, staged, elastic=True).solve()
    if placed is None:
        raise AssertionError("an elastic program always has a solution")
    return placed


class _Program:
    """Builds and reads the integer program of one problem."""

    def __init__(self, problem: Problem, staged: Mapping[int, str], *, elastic: bool) -> None:
        self.problem = problem
        self.staged = staged
        self.elastic = elastic
        self.ip = IntegerProgram()
        self.classes = classes_of(problem, staged)
        self.main = problem.scenario.execution.main
        has_room = problem.disk_deficit_bytes == 0
        self.places = [
            place for place in problem.scenario.execution.streams_from if place != DISK or has_room
        ]
        # In a fixed order, so that of equally good placements the solver always finds the same one.
        self.used: dict[str, dict[str, dict[int, float]]] = {
            device: {phase: {} for phase in PHASES} for device in dict.fromkeys((self.main, CPU))
        }
        self.fixed: dict[str, dict[str, float]] = {device: dict.fromkeys(PHASES, 0.0) for device in self.used}
        self.peaks = {
            (device, phase): self.ip.column(integral=False) for device in self.used for phase in PHASES
        }
        self.columns = [self._class_columns(one) for one in self.classes]
        self._capacities()
        if self.main != CPU and problem.scenario.runtime_model.needs_resident:
            self._keep_one()

    def solve(self) -> SolvedPlacement | None:
        """Run it and read the counts back."""
        solution = self.ip.solve()
        if solution is None:
            return None
        _, values = solution
        shortage = {
            device: round(values[column] * _MIB)
            for device, column in self.shortage.items()
            if values[column] * _MIB >= 1
        }
        return SolvedPlacement(assignment=self._assignment(values), shortage_bytes=shortage)

    # -- columns -----------------------------------------------------------------------------------

    def _class_columns(self, one: UnitClass) -> _Columns:
        count = len(one.indices)
        may_leave = (
            self.problem.scenario.execution.cpu_execution
            and self.main != CPU
            # A lone embedding or norm does next to nothing: moving it to the CPU is never a plan.
            and one.price.unit.is_block
            and not one.price.unit.pinned_to_main
            and CPU in one.price.work
        )
        on_cpu = None
        self._add_units(one, count)
        if may_leave:
            on_cpu = self.ip.column(cost=self._cost(cpu_premium_s(self.problem, one.price)), upper=count)
            self._move_units(one, on_cpu)
        streamed = []
        for kind in one.kinds:
            is_moved = kind.price.streamable and kind.price.stored_bytes > 0
            limit = count * len(kind.positions)
            streamed.append(
                {place: self._stream(kind, limit, stored_on=place) for place in self.places if is_moved}
            )
            self._bind(kind, count, on_cpu, streamed[-1].values())
        return _Columns(on_cpu, tuple(streamed))

    def _cost(self, seconds: float) -> float:
        """An elastic program minimises bytes that lack, and nothing else."""
        return 0.0 if self.elastic else seconds

    def _add_units(self, one: UnitClass, count: int) -> None:
        """All units resident on the main device: the point of departure."""
        for phase in PHASES:
            resident = one.price.resident(kind_of(self.main), phase)
            self.fixed[self.main][phase] += count * resident.charged_bytes / _MIB

    def _move_units(self, one: UnitClass, on_cpu: int) -> None:
        """Each unit that leaves takes weights, buffers and cache along; the last takes its peak along."""
        price, count = one.price, len(one.indices)
        stays = self.ip.column(upper=1)
        self.ip.row({stays: count, on_cpu: 1}, lower=count)  # stays = 1 unless all of them leave
        leaves = self.ip.column(upper=1)
        self.ip.row({leaves: count, on_cpu: -1}, lower=0)
        for phase in PHASES:
            freed, taken = price.resident(kind_of(self.main), phase), price.resident(CPU, phase)
            _accumulate(self.used[self.main][phase], on_cpu, -freed.charged_bytes / _MIB)
            _accumulate(self.used[CPU][phase], on_cpu, taken.charged_bytes / _MIB)
            self._peak_at_least(self.main, phase, price.peak[phase], stays)
            self._peak_at_least(CPU, phase, price.peak[phase], leaves)

    def _stream(self, kind: LeafKind, limit: int, *, stored_on: str) -> int:
        """Leaves of this kind that live elsewhere and run on the main device."""
        cost = self._cost(streaming_s(self.problem, kind.price, stored_on))
        column = self.ip.column(cost=cost, upper=limit)
        freed = stored_weights(self.problem, kind.price, self.main, self.main).charged_bytes / _MIB
        taken = stored_weights(self.problem, kind.price, stored_on, self.main).charged_bytes / _MIB
        any_of_it = self.ip.column(upper=1)
        self.ip.row({any_of_it: limit, column: -1}, lower=0)
        for phase in PHASES:
            _accumulate(self.used[self.main][phase], column, -freed)
            if stored_on == CPU:
                _accumulate(self.used[CPU][phase], column, taken)
            self._peak_at_least(self.main, phase, kind.price.streamed_peak[phase], any_of_it)
        return column

    # -- rows --------------------------------------------------------------------------------------

    def _bind(self, kind: LeafKind, count: int, on_cpu: int | None, streamed: Collection[int]) -> None:
        """Streamed leaves belong to units that execute on the main device."""
        if not streamed:
            return
        size = len(kind.positions)
        row: dict[int, float] = dict.fromkeys(streamed, 1.0)
        if on_cpu is not None:
            row[on_cpu] = float(size)
        self.ip.row(row, upper=count * size)

    def _keep_one(self) -> None:
        """Something must live on the main GPU."""
        row: dict[int, float] = {}
        total = 0
        for one, columns in zip(self.classes, self.columns, strict=True):
            for number, kind in enumerate(one.kinds):
                if not kind.price.leaf.entries:
                    continue
                total += len(one.indices) * len(kind.positions)
                for column in columns.streamed[number].values():
                    _accumulate(row, column, 1.0)
                if columns.on_cpu is not None:
                    _accumulate(row, columns.on_cpu, float(len(kind.positions)))
        if row:
            self.ip.row(row, upper=total - 1)

    def _peak_at_least(self, device: str, phase: str, num_bytes: int, switch: int) -> None:
        """The device's peak covers these bytes when the switch is on."""
        self.ip.row({self.peaks[device, phase]: 1.0, switch: -num_bytes / _MIB}, lower=0)

    def _capacities(self) -> None:
        """One row per device and phase, and the peaks that no choice can avoid."""
        self.shortage: dict[str, int] = {}
        for device in self.used:
            available = self.problem.capacities[device].available_bytes / _MIB - _MARGIN_MIB
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
        # The program is solved only where something must be streamed, so the buffers for that are there.
        runtime = runtime_term(self.problem, self.problem.units, device, phase, streams=True)
        if device == self.main:
            settled = [
                one.price
                for one, columns in zip(self.classes, self.columns, strict=True)
                if columns.on_cpu is None
            ]
            least = least_peak(self.problem, settled, device, phase)
            self.ip.row({self.peaks[device, phase]: 1.0}, lower=least / _MIB)
        fixed = self.fixed[device][phase] + runtime.charged_bytes / _MIB
        self.ip.row(coefficients, upper=available_mib - fixed)

    # -- reading -----------------------------------------------------------------------------------

    def _assignment(self, values: list[float]) -> Assignment:
        counted = [
            (one, _counts(values, columns)) for one, columns in zip(self.classes, self.columns, strict=True)
        ]
        return assignment_of(self.problem, self.staged, counted)


def _counts(values: list[float], columns: _Columns) -> Counts:
    return Counts(
        on_cpu=0 if columns.on_cpu is None else round(values[columns.on_cpu]),
        streamed=tuple(
            {place: round(values[column]) for place, column in one.items()} for one in columns.streamed
        ),
    )


def _accumulate(row: dict[int, float], column: int, coefficient: float) -> None:
    row[column] = row.get(column, 0.0) + coefficient
