"""A small mixed-integer program of numbered columns (variables) and rows (constraints), solved by HiGHS."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import highspy

#: HiGHS takes IEEE infinity for a missing bound.
INFINITY = float("inf")


class SolverError(Exception):
    """HiGHS stopped without an optimum and without a proof that there is none."""


class _Silent(highspy.Highs):
    """HiGHS without its banner, which its first call prints on standard output.

    Since 1.16 that first call is `enableCallbacks` in the constructor, before any option can be set.
    """

    def enableCallbacks(self) -> None:
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]  # HiGHS leaves it without types


@dataclass(slots=True)
class IntegerProgram:
    """Minimise the cost of the columns within their bounds, subject to the rows.

    Columns are numbered in the order in which they are added. Costs, bounds and `integral` are by column.
    """

    costs: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integral: list[bool] = field(default_factory=list)
    rows: list[tuple[float, float, dict[int, float]]] = field(default_factory=list)

    def column(
        self, *, cost: float = 0.0, lower: float = 0.0, upper: float = INFINITY, integral: bool = True
    ) -> int:
        """Add a variable.

        Args:
            cost: its coefficient in the objective.
            lower: its smallest value.
            upper: its largest value.
            integral: whether it must be a whole number.

        Returns:
            Its number.
        """
        self.costs.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        self.integral.append(integral)
        return len(self.costs) - 1

    def row(
        self, coefficients: Mapping[int, float], *, lower: float = -INFINITY, upper: float = INFINITY
    ) -> None:
        """Add a constraint: lower ≤ Σ coefficient · variable ≤ upper.

        Args:
            coefficients: number of a variable → its coefficient; the others have 0.
            lower: the smallest value of the sum.
            upper: the largest value of the sum.
        """
        self.rows.append((lower, upper, dict(coefficients)))

    def solve(self, *, relative_gap: float = 1e-6) -> tuple[float, list[float]] | None:
        """Solve the program to the given relative gap.

        Returns:
            The optimum and the variables' values, integer ones rounded; None when it is infeasible.

        Raises:
            SolverError: neither an optimum nor a proof that there is none.
        """
        solver = _Silent()  # type: ignore[no-untyped-call]  # HiGHS leaves it without types
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("mip_rel_gap", relative_gap)
        solver.setOptionValue("mip_abs_gap", 0.0)
        self._load(solver)
        solver.run()
        status = solver.getModelStatus()
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return None
        if status != highspy.HighsModelStatus.kOptimal:
            raise SolverError(f"the solver stopped with {solver.modelStatusToString(status)!r}")
        values = list(solver.getSolution().col_value)
        rounded = [float(round(v)) if whole else v for v, whole in zip(values, self.integral, strict=True)]
        return solver.getInfo().objective_function_value, rounded

    def _load(self, solver: highspy.Highs) -> None:
        for cost, lower, upper in zip(self.costs, self.lower, self.upper, strict=True):
            solver.addCol(cost, lower, upper, 0, [], [])
        for index, whole in enumerate(self.integral):
            if whole:
                solver.changeColIntegrality(index, highspy.HighsVarType.kInteger)
        for lower, upper, coefficients in self.rows:
            solver.addRow(lower, upper, len(coefficients), list(coefficients), list(coefficients.values()))
