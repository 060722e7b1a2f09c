"""The terms of a profile that rows may change, and rows as errors under other values of them."""

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
#: Dotted key → the largest value it may have.
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
    """The terms that a profile has, with their values; what is zero has no factor and is left out."""
    found = {path: quantity.value for path, quantity in quantities(profile)}
    return {key: found[key] for key in TERMS if found.get(key)}


def numbers_of(profile: HardwareProfile, values: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a profile under other values of some terms, by dotted key.

    What few rows reach of the processor's matrix rate goes with what many do: one term, not one for each
    count of rows.
    """
    found = {path: quantity.value for path, quantity in quantities(profile)}
    changed = {}
    for key, value in values.items():
        changed[key] = value
        if key.startswith(_MANY_ROWS) and key in found:
            few = f"{_FEW_ROWS}{key.removeprefix(_MANY_ROWS)}."
            changed |= {path: one * value / found[key] for path, one in found.items() if path.startswith(few)}
    return changed


def with_terms(profile: HardwareProfile, values: Mapping[str, float]) -> HardwareProfile:
    """The profile with other values of some terms; one that it does not have is left out."""
    changed: Any = profile
    for key, value in numbers_of(profile, values).items():
        changed = _with_value(changed, key.split("."), value)
    return changed  # type: ignore[no-any-return]


def _with_value(part: Any, path: Sequence[str], value: float) -> Any:
    """A part of a profile, down to one quantity, with another value of the quantity at a path in it."""
    if isinstance(part, Quantity):
        return msgspec.structs.replace(part, value=value)
    if isinstance(part, dict):
        return {
            key: _with_value(one, path[1:], value) if str(key) == path[0] else one
            for key, one in part.items()
        }
    return msgspec.structs.replace(part, **{path[0]: _with_value(getattr(part, path[0]), path[1:], value)})


class Sample:
    """Rows that ran and that the model can price, as errors under factors on a profile's terms.

    Attributes:
        terms: the profile's, with their values.
        rows: in the files' order.
        groups: the configuration of each row, which is left out as a whole.
    """

    def __init__(self, profile: HardwareProfile, paths: Sequence[Path]) -> None:
        """Take the rows of some files.

        Raises:
            BadFileError: a file cannot be read, or a row is of another model than its plan.
            InvalidInputError: rows of another GPU, or of too few configurations.
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
        """The largest logarithm of each term's factor."""
        return np.asarray([math.log(max(1.0, TERMS[key] / value)) for key, value in self.terms.items()])

    def values(self, theta: Array) -> dict[str, float]:
        """The terms under factors."""
        items = zip(self.terms.items(), theta, strict=True)
        return {key: value * math.exp(one) for (key, value), one in items}

    def errors(self, theta: Array, rows: NDArray[np.intp]) -> Array:
        """Logarithms of predicted over measured, (rows, prefill and decode)."""
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
    """Why a row cannot be used, as a clause: it did not run, generated one token, or has no price."""
    if row.measured is None:
        return "did not run"
    if not row.measured.decode_s:
        return "generated one token"
    if row.predicted is None:
        return "ran in a way that the cost model has no law for"
    try:
        repriced(plan, graph_of(plan.model), workload_of(row, plan), memory_cap_bytes=row.memory_cap_bytes)
    except PlannerError as error:
        return f"cannot be priced ({error})"
    return None


def _counted(reasons: Iterable[str | None]) -> str:
    """What was left out and why, the most frequent first."""
    counts = Counter(reason for reason in reasons if reason is not None)
    found = [f"{count} {'row' if count == 1 else 'rows'} {reason}" for reason, count in counts.most_common()]
    return f"; {', '.join(found)}" if found else ""


def _measured(row: Row, phase: str) -> float:
    if row.measured is None:
        raise ValueError(f"the row of {row.name} at batch {row.batch_size} did not run")
    return row.measured.prefill_s if phase == "prefill" else row.measured.mean_decode_s


def _same_machine(profile: HardwareProfile, row: Row, plan: Plan) -> None:
    mine, theirs = (one.gpu.name if one.gpu else "no GPU" for one in (profile, plan.hardware))
    if mine != theirs:
        raise InvalidInputError(
            f"the row of {row.name} at batch {row.batch_size} was planned for {theirs}, and the profile "
            f"{profile.name} has {mine}; calibrate a profile with rows of its own machine"
        )
