"""Predictions of the cost model for every published row."""

from collections.abc import Iterable
from functools import cache
from typing import Final

import msgspec

from planner.accuracy.configurations import Outcome, graph_of, outcome
from planner.accuracy.published import PublishedRow, rows
from planner.accuracy.setups import Setup, setup_of
from planner.graph.schema import ModuleGraph
from planner.tensor_parallel.cuts import features, is_embedding

#: Batch sizes of the published tables of BLOOM, in ascending order.
LADDER: Final = (1, 8, 16, 32, 64, 128, 256, 512)
_LARGEST_BATCH: Final = 4096
_MIB: Final = 2**20
_GIB: Final = 2**30

#: Metric → kind of metric; medians are taken over the rows of one kind.
KINDS: Final = {
    "time_per_token": "time",
    "time_per_token_per_sequence": "time",
    "model_load_time": "load",
    "load_time": "load",
    "gpu0_mem": "memory",
    "gpu1_mem": "memory",
    "cpu_mem": "memory",
    "memory_allocated_per_gpu": "memory",
    "max_batch": "batch",
    "max_throughput_per_gpu": "throughput",
}


class ComparedRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published row with its prediction.

    Attributes:
        row: the published row.
        predicted: prediction in the row's unit, ignoring memory limits; None if there is no prediction.
        fits: whether the run is predicted to fit; None for metrics that do not say whether it did.
        reason: why there is no prediction; otherwise empty.
    """

    row: PublishedRow
    predicted: float | None = None
    fits: bool | None = None
    reason: str = ""

    @property
    def kind(self) -> str:
        """Kind of the metric: `time`, `load`, `memory`, `batch` or `throughput`."""
        return KINDS[self.row.metric]

    @property
    def relative_error(self) -> float | None:
        """Predicted divided by published, minus one; None without both numbers, or if zero was published."""
        if self.predicted is None or self.row.is_out_of_memory or float(self.row.value) == 0:
            return None
        return self.predicted / float(self.row.value) - 1

    @property
    def fit_is_right(self) -> bool | None:
        """Whether it is predicted correctly that the run fits or does not fit; None if `fits` is None."""
        return None if self.fits is None else self.fits != self.row.is_out_of_memory


def lines() -> tuple[ComparedRow, ...]:
    """All published rows with their predictions, in the file's order."""
    return tuple(_line(row, setup_of(row)) for row in rows())


def _line(row: PublishedRow, setup: Setup) -> ComparedRow:
    if setup.reason:
        return ComparedRow(row=row, reason=setup.reason)
    if row.metric == "max_batch":
        return ComparedRow(row=row, predicted=float(largest_batch(setup)))
    run = _outcome(setup, row.batch_size)
    if KINDS[row.metric] != "time":
        return ComparedRow(row=row, predicted=_number(row, setup, run))
    return ComparedRow(row=row, predicted=_number(row, setup, run), fits=run.fits)


def _outcome(setup: Setup, batch_size: int) -> Outcome:
    return _cached(msgspec.json.encode(setup), batch_size)


@cache
def _cached(setup: bytes, batch_size: int) -> Outcome:
    return outcome(msgspec.json.decode(setup, type=Setup), batch_size)


def _number(row: PublishedRow, setup: Setup, run: Outcome) -> float:
    """The prediction of a row's metric in the row's unit."""
    weights = {device: phases["decode"].weights for device, phases in run.memory.items()}
    match row.metric:
        case "time_per_token":
            return run.total_s / run.new_tokens
        case "time_per_token_per_sequence":
            return 1e3 * run.total_s / (run.new_tokens * run.num_sequences)
        case "model_load_time" | "load_time":
            return run.load_s
        case "gpu0_mem" | "gpu1_mem" | "cpu_mem":
            # Accelerate's script prints MiB; the published table divides them by 1000.
            device = "cpu" if row.metric == "cpu_mem" else f"gpu:{row.metric[3]}"
            return weights.get(device, 0) / _MIB / 1000
        case "memory_allocated_per_gpu":
            return weights["gpu:0"] / _GIB
        case "max_throughput_per_gpu":
            return _teraflops(row, setup, run)
    raise ValueError(f"the metric {row.metric} has no prediction")


def _teraflops(row: PublishedRow, setup: Setup, run: Outcome) -> float:
    """TFLOP/s of each GPU as in DeepSpeed's script: 2 · 12 · layers · hidden² · batch / time per token."""
    graph = graph_of(setup.model)
    parameters = 12 * len(graph.blocks) * _hidden(graph) ** 2
    per_token_s = run.total_s / run.new_tokens
    return 2 * parameters * row.batch_size / per_token_s / run.num_ranks / 1e12


def _hidden(graph: ModuleGraph) -> int:
    return features(next(node for node in graph.nodes if is_embedding(node, graph)))[1]


def largest_batch(setup: Setup) -> int:
    """The largest batch size that is predicted to fit; 0 when not even one sequence fits."""
    low, high = 0, 1
    while high <= _LARGEST_BATCH and _outcome(setup, high).fits:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _outcome(setup, middle).fits else (low, middle)
    return low


class LadderResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest batch size of a published table that fits.

    Attributes:
        runtime: runtime and dtype of the table.
        published: the largest batch size that ran.
        predicted: the largest batch size of `LADDER` that is predicted to fit; 0 if none is.
    """

    runtime: str
    published: int
    predicted: int

    @property
    def steps(self) -> int:
        """Number of steps in `LADDER` between the two; positive when the prediction is too large."""
        return _step(self.predicted) - _step(self.published)


def _step(batch_size: int) -> int:
    return LADDER.index(batch_size) if batch_size else -1


def ladders(compared: Iterable[ComparedRow]) -> tuple[LadderResult, ...]:
    """One result for each table with a run that went out of memory."""
    tables: dict[str, list[PublishedRow]] = {}
    for line in compared:
        if line.row.metric == "time_per_token_per_sequence" and not line.reason:
            tables.setdefault(f"{line.row.runtime}, {line.row.dtype}", []).append(line.row)
    return tuple(
        LadderResult(
            runtime=name,
            published=max(row.batch_size for row in table if not row.is_out_of_memory),
            predicted=max((b for b in LADDER if _outcome(setup_of(table[0]), b).fits), default=0),
        )
        for name, table in tables.items()
        if any(row.is_out_of_memory for row in table)
    )
