"""From samples of a phase at several sizes to one PhaseCost per module."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from planner.graph.schema import PhaseCost, Poly
from planner.tracing.cost_tracer import PhaseSample
from planner.tracing.fits import Array, Size, fit, poly, undominated
from planner.tracing.forwards import Replay, is_under

_logger: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    """An operation, or a replayed layer's sum; `index` is its event. Rows of arrays are sizes or terms."""

    index: int
    num_ops: int
    flops: Array
    moved: Array
    live: Array


@dataclass(slots=True)
class _Totals:
    """Sums over the operations of a module's own code in one phase."""

    num_ops: int
    flops: Array
    moved: Array
    live: Array


def phase_costs(
    sizes: Sequence[Size], terms: Sequence[str], samples: Sequence[PhaseSample]
) -> dict[str, PhaseCost]:
    """Costs by module, replayed layers included.

    For nearly every model the sequence of operations is the same at every size; then each operation's numbers
    are fitted separately. Otherwise each module's totals are fitted.

    Args:
        sizes: sizes of the samples.
        terms: names of Poly's fields to fit.
        samples: one sample for each size.
    """
    if len({_shape_of(sample) for sample in samples}) == 1:
        return _by_operation(sizes, terms, samples)
    _logger.info("the operations differ between sizes; fitting modules as wholes")
    return _by_module(sizes, terms, samples)


def with_peaks_of(
    costs: Mapping[str, PhaseCost],
    other: Mapping[str, PhaseCost],
    replays: Sequence[Replay],
    shortest_prompt: int,
) -> dict[str, PhaseCost]:
    """`costs` with the peaks of another fit added.

    A layer gets the peaks of all layers equal to it: past a sliding window every layer leaves more bytes
    alive than the one before, and the peak of the last one is the model's.

    Args:
        costs: module fqn → its costs.
        other: the same, fitted past a sliding window.
        replays: the replayed layers of `other`'s samples.
        shortest_prompt: prompt tokens from which `other` is valid.
    """
    ran = {r.rename(name): name for r in replays for name in costs if is_under(name, r.source)}
    equals: dict[str, list[Poly]] = defaultdict(list)
    for name, cost in other.items():
        equals[ran.get(name, name)].extend(cost.peak_bytes)
    kept = {name: _undominated(polys, shortest_prompt) for name, polys in equals.items()}
    return {
        name: msgspec.structs.replace(
            cost, peak_bytes=_undominated([*cost.peak_bytes, *kept.get(ran.get(name, name), ())])
        )
        for name, cost in costs.items()
    }


def _undominated(polys: Sequence[Poly], shortest_prompt: int = 1) -> tuple[Poly, ...]:
    if not polys:
        return ()
    columns = np.array([msgspec.structs.astuple(p) for p in polys], np.float64).T
    return tuple(poly(column) for column in undominated(columns, shortest_prompt).T)


def _shape_of(sample: PhaseSample) -> Any:
    return tuple(sample.names), tuple((r.source, r.target, r.clock) for r in sample.replays)


def _by_operation(
    sizes: Sequence[Size], terms: Sequence[str], samples: Sequence[PhaseSample]
) -> dict[str, PhaseCost]:
    first = samples[0]
    fitted = []
    for values in ("flops", "moved", "live", "shifts"):
        matrix = np.array([getattr(sample, values) for sample in samples], np.float64)
        coefficients, exact = fit(sizes, terms, matrix.reshape(len(samples), -1))
        if not exact.all():
            _logger.info("%s: %d of %d forms are not exact", values, int((~exact).sum()), exact.size)
        fitted.append(coefficients)
    flops, moved, live, shifts = fitted
    totals = _totals(first.names, flops, moved, live, first.replays, shifts, undominated)
    return {
        name: PhaseCost(
            num_ops=total.num_ops,
            flops=poly(total.flops),
            moved_bytes=poly(total.moved),
            peak_bytes=tuple(poly(column) for column in total.live.T),
        )
        for name, total in totals.items()
    }


def _by_module(
    sizes: Sequence[Size], terms: Sequence[str], samples: Sequence[PhaseSample]
) -> dict[str, PhaseCost]:
    per_size = []
    for sample in samples:
        flops, moved, live = (np.array([v], np.float64) for v in (sample.flops, sample.moved, sample.live))
        shifts = np.array([sample.shifts], np.float64).reshape(1, -1)
        per_size.append(_totals(sample.names, flops, moved, live, sample.replays, shifts, _highest))
    names = list(dict.fromkeys(name for totals in per_size for name in totals))
    nothing = _Totals(0, np.zeros(1), np.zeros(1), np.zeros((1, 1)))
    totals_of_sizes = [[totals.get(name, nothing) for name in names] for totals in per_size]
    flops, _ = fit(sizes, terms, np.array([[t.flops[0] for t in row] for row in totals_of_sizes]))
    moved, _ = fit(sizes, terms, np.array([[t.moved[0] for t in row] for row in totals_of_sizes]))
    live, _ = fit(sizes, terms, np.array([[t.live[0, 0] for t in row] for row in totals_of_sizes]))
    num_ops = np.array([[t.num_ops for t in row] for row in totals_of_sizes]).max(axis=0)
    return {
        name: PhaseCost(
            num_ops=int(num_ops[i]),
            flops=poly(flops[:, i]),
            moved_bytes=poly(moved[:, i]),
            peak_bytes=(poly(live[:, i]),),
        )
        for i, name in enumerate(names)
    }


def _highest(columns: Array) -> Array:
    highest: Array = columns.max(axis=1, keepdims=True)
    return highest


def _totals(
    names: Sequence[str | None],
    flops: Array,
    moved: Array,
    live: Array,
    replays: Sequence[Replay],
    shifts: Array,
    reduce: Callable[[Array], Array],
) -> dict[str, _Totals]:
    """Sums by module; a replayed layer has its template's costs, with live bytes shifted to its position."""
    entries: dict[str, list[_Entry]] = defaultdict(list)
    for index, name in enumerate(names):
        if name is not None:
            entries[name].append(
                _Entry(index, 1, flops[:, index], moved[:, index], live[:, index : index + 1])
            )
    templates: dict[int, list[tuple[str, _Totals]]] = {}
    for number, replay in enumerate(replays):
        template = replay.template
        if id(template) not in templates:
            templates[id(template)] = [
                (name, _sum(inside, reduce))
                for name, own_entries in entries.items()
                if is_under(name, replay.source)
                and (inside := [e for e in own_entries if template.first <= e.index < template.last])
            ]
        for name, total in templates[id(template)]:
            raised = total.live + shifts[:, number : number + 1]
            entry = _Entry(replay.clock, total.num_ops, total.flops, total.moved, raised)
            entries[replay.rename(name)].append(entry)
    return {name: _sum(own_entries, reduce) for name, own_entries in entries.items()}


def _sum(entries: Sequence[_Entry], reduce: Callable[[Array], Array]) -> _Totals:
    if len(entries) == 1 and entries[0].num_ops > 1:  # a single replayed layer, which is a sum already
        entry = entries[0]
        return _Totals(entry.num_ops, entry.flops, entry.moved, entry.live)
    return _Totals(
        num_ops=sum(e.num_ops for e in entries),
        flops=np.sum([e.flops for e in entries], axis=0),
        moved=np.sum([e.moved for e in entries], axis=0),
        live=reduce(np.concatenate([e.live for e in entries], axis=1)),
    )
