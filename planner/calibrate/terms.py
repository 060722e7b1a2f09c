"""The terms of a profile that calibration may change, and the errors of rows as a function of them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from planner.accuracy.own import graph_of, planned_rows, workload_of
from planner.bench.repricing import repriced
from planner.bench.rows import Row
from planner.calibrate.fit import FEWEST_GROUPS, Array
from planner.cost.time import time
from planner.errors import InvalidInputError, PlannerError
from planner.hardware.files import quantities
from planner.schema.hardware import HardwareProfile
from planner.schema.plan import Plan
from planner.schema.quantity import Quantity
from planner.schema.workload import DTYPE_BYTES

_MANY_ROWS: Final = "host.flops_per_s."
_FEW_ROWS: Final = "host.few_rows_flops_per_s."
#: Dotted key of a term → its largest possible value.
TERMS: Final = {
    "host.op_overhead_s": math.inf,
    "host.tensor_move_overhead_s": math.inf,
    "host.memory_bandwidth_bytes_per_s": math.inf,
    **{f"host.gemv_bytes_per_s.{dtype}": math.inf for dtype in DTYPE_BYTES},
    **{f"{_MANY_ROWS}{dtype}": math.inf for dtype in DTYPE_BYTES},
    **{f"host.attention_bytes_per_s.{dtype}": math.inf for dtype in DTYPE_BYTES},
    "gpu.gemm_efficiency": 1.0,
    "gpu.bandwidth_efficiency": 1.0,
    "host_to_device.pinned_bytes_per_s": math.inf,
    "host_to_device.pageable_bytes_per_s": math.inf,
}
_PHASES: Final = ("prefill", "decode")


def terms_of(profile: HardwareProfile) -> dict[str, float]:
    """The terms of a profile with their values; terms with the value zero are left out."""
    values = {path: quantity.value for path, quantity in quantities(profile)}
    return {key: values[key] for key in TERMS if values.get(key)}


def numbers_of(profile: HardwareProfile, values: Mapping[str, float]) -> dict[str, float]:
    """All numbers of a profile that change with new values of some terms, by dotted key.

    The processor's matrix rates for few rows are scaled with the rate for many rows: they are one term, not
    one for each number of rows.
    """
    former = {path: quantity.value for path, quantity in quantities(profile)}
    changed = {}
    for key, value in values.items():
        changed[key] = value
        if key.startswith(_MANY_ROWS) and key in former:
            prefix = f"{_FEW_ROWS}{key.removeprefix(_MANY_ROWS)}."
            factor = value / former[key]
            changed |= {path: old * factor for path, old in former.items() if path.startswith(prefix)}
    return changed


def with_terms(profile: HardwareProfile, values: Mapping[str, float]) -> HardwareProfile:
    """The profile with new values of some terms; terms that it does not have are ignored."""
    changed: Any = profile
    for key, value in numbers_of(profile, values).items():
        changed = _with_value(changed, key.split("."), value)
    return changed  # type: ignore[no-any-return]


def _with_value(part: Any, path: Sequence[str], value: float) -> Any:
    """A part of a profile with a new value of the quantity at a path in it."""
    if isinstance(part, Quantity):
        return msgspec.structs.replace(part, value=value)
    if isinstance(part, dict):
        return {
            key: _with_value(entry, path[1:], value) if str(key) == path[0] else entry
            for key, entry in part.items()
        }
    return msgspec.structs.replace(part, **{path[0]: _with_value(getattr(part, path[0]), path[1:], value)})


class Sample:
    """Rows with measurements and a prediction; their errors as a function of factors on a profile's terms.

    Attributes:
        terms: the profile's terms with their values.
        rows: the rows, in the files' order.
        groups: for each row the number of its configuration; cross-validation leaves out configurations.
    """

    def __init__(self, profile: HardwareProfile, paths: Sequence[Path]) -> None:
        """Read the rows of several files.

        Raises:
            BadFileError: a file cannot be read, or a row is of another model than its plan.
            InvalidInputError: rows are of another GPU than the profile's, or of too few configurations.
        """
        self.terms = terms_of(profile)
        pairs = planned_rows(paths)
        left_out = [_why_not(*pair) for pair in pairs]
        usable = [pair for pair, reason in zip(pairs, left_out, strict=True) if reason is None]
        for row, plan in usable:
            _same_machine(profile, row, plan)
        self._pairs = usable
        self.rows = [row for row, _ in usable]
        names = [(row.name, row.model, row.memory_cap_bytes) for row in self.rows]
        order = list(dict.fromkeys(names))
        self.groups = [order.index(name) for name in names]
        if len(order) < FEWEST_GROUPS:
            raise InvalidInputError(
                f"there are rows of {len(order)} configurations that ran and have a prediction, and "
                f"{FEWEST_GROUPS} are needed to cross-validate; benchmark more plans{_counted(left_out)}"
            )
        self._measured = np.log([[_measured(row, phase) for phase in _PHASES] for row in self.rows])

    @property
    def upper(self) -> Array:
        """Upper bound of the logarithm of each term's factor."""
        return np.asarray([math.log(max(1.0, TERMS[key] / value)) for key, value in self.terms.items()])

    def values(self, theta: Array) -> dict[str, float]:
        """The values of the terms with the factors exp(θ)."""
        items = zip(self.terms.items(), theta, strict=True)
        return {key: value * math.exp(exponent) for (key, value), exponent in items}

    def errors(self, theta: Array, rows: NDArray[np.intp]) -> Array:
        """Logarithms of predicted divided by measured times, of shape (rows, 2): prefill and decode."""
        values = self.values(theta)
        return np.asarray([self._log_times(values, row) for row in rows]) - self._measured[rows]

    def _log_times(self, values: dict[str, float], index: int) -> list[float]:
        row, plan = self._pairs[index]
        plan = msgspec.structs.replace(plan, hardware=with_terms(plan.hardware, values))
        priced = repriced(
            plan, graph_of(plan.model), workload_of(row, plan), memory_cap_bytes=row.memory_cap_bytes
        )
        times = time(*priced)
        return [math.log(times[phase].total) for phase in _PHASES]


def _why_not(row: Row, plan: Plan) -> str | None:
    """Why a row cannot be used, as a clause; None if it can."""
    if row.measured is None:
        return "did not run"
    if not row.measured.decode_s:
        return "generated one token"
    if row.predicted is None:
        return "ran in a configuration that the cost model cannot predict"
    try:
        repriced(plan, graph_of(plan.model), workload_of(row, plan), memory_cap_bytes=row.memory_cap_bytes)
    except PlannerError as error:
        return f"cannot be predicted ({error})"
    return None


def _counted(reasons: Iterable[str | None]) -> str:
    """How many rows were left out for which reason, the most frequent reason first."""
    counts = Counter(reason for reason in reasons if reason is not None)
    clauses = [f"{n} {'row' if n == 1 else 'rows'} {reason}" for reason, n in counts.most_common()]
    return f"; {', '.join(clauses)}" if clauses else ""


def _measured(row: Row, phase: str) -> float:
    if row.measured is None:
        raise ValueError(f"the row of {row.name} at batch {row.batch_size} did not run")
    return row.measured.prefill_s if phase == "prefill" else row.measured.mean_decode_s


def _same_machine(profile: HardwareProfile, row: Row, plan: Plan) -> None:
    expected, planned = (one.gpu.name if one.gpu else "no GPU" for one in (profile, plan.hardware))
    if expected != planned:
        raise InvalidInputError(
            f"the row of {row.name} at batch {row.batch_size} was planned for {planned}, and the profile "
            f"{profile.name} has {expected}; calibrate a profile with rows of its own machine"
        )
