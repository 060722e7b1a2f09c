"""Every published row beside what the cost model says of it."""

from collections.abc import Iterable
from functools import cache
from typing import Final

import msgspec

from planner.accuracy.configurations import Outcome, graph_of, outcome
from planner.accuracy.published import PublishedRow, rows
from planner.accuracy.setups import Setup, setup_of
from planner.graph.schema import ModuleGraph
from planner.tensor_parallel.cuts import features, is_embedding

#: Batch sizes of BLOOM's tables.
LADDER: Final = (1, 8, 16, 32, 64, 128, 256, 512)
_LARGEST_BATCH: Final = 4096
_MIB: Final = 2**20
_GIB: Final = 2**30

#: Metric → the kind that medians are taken over.
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
        row: as published.
        predicted: in the row's unit, as if it fitted; None where there is none.
        fits: whether the run is predicted to fit, where the row says whether it did.
        reason: why the row is not priced, or empty.
    """

    row: PublishedRow
    predicted: float | None = None
    fits: bool | None = None
    reason: str = ""

    @property
    def kind(self) -> str:
        """What was measured: `time`, `load`, `memory`, `batch` or `throughput`."""
        return KINDS[self.row.metric]

    @property
    def relative_error(self) -> float | None:
        """Predicted over published, less one; None without both, or when zero was published."""
        if self.predicted is None or self.row.is_out_of_memory or float(self.row.value) == 0:
            return None
        return self.predicted / float(self.row.value) - 1

    @property
    def fit_is_right(self) -> bool | None:
        """Whether the prediction fits exactly when the run did."""
        return None if self.fits is None else self.fits != self.row.is_out_of_memory


def lines() -> tuple[ComparedRow, ...]:
    """All rows, in the file's order."""
    return tuple(_line(row, setup_of(row)) for row in rows())


def _line(row: PublishedRow, setup: Setup) -> ComparedRow:
    if setup.reason:
        return ComparedRow(row=row, reason=setup.reason)
    if row.metric == "max_batch":
        return ComparedRow(row=row, predicted=float(largest_batch(setup)))
    found = _outcome(setup, row.batch_size)
    if KINDS[row.metric] != "time":
        return ComparedRow(row=row, predicted=_number(row, setup, found))
    return ComparedRow(row=row, predicted=_number(row, setup, found), fits=found.fits)


def _outcome(setup: Setup, batch_size: int) -> Outcome:
    return _cached(msgspec.json.encode(setup), batch_size)


@cache
def _cached(setup: bytes, batch_size: int) -> Outcome:
    return outcome(msgspec.json.decode(setup, type=Setup), batch_size)


def _number(row: PublishedRow, setup: Setup, found: Outcome) -> float:
    """The prediction of a row's metric in its unit."""
    weights = {device: phases["decode"].weights for device, phases in found.memory.items()}
    match row.metric:
        case "time_per_token":
            return found.total_s / found.new_tokens
        case "time_per_token_per_sequence":
            return 1e3 * found.total_s / (found.new_tokens * found.num_sequences)
        case "model_load_time" | "load_time":
            return found.load_s
        case "gpu0_mem" | "gpu1_mem" | "cpu_mem":
            # Accelerate's script prints MiB, and the table has thousands of them.
            device = "cpu" if row.metric == "cpu_mem" else f"gpu:{row.metric[3]}"
            return weights.get(device, 0) / _MIB / 1000
        case "memory_allocated_per_gpu":
            return weights["gpu:0"] / _GIB
        case "max_throughput_per_gpu":
            return _teraflops(row, setup, found)
    raise ValueError(f"the metric {row.metric} has no prediction")


def _teraflops(row: PublishedRow, setup: Setup, found: Outcome) -> float:
    """As DeepSpeed's script has it: 2 · 12 · layers · hidden² · batch per token's time, for each GPU."""
    graph = graph_of(setup.model)
    parameters = 12 * len(graph.blocks) * _hidden(graph) ** 2
    per_token_s = found.total_s / found.new_tokens
    return 2 * parameters * row.batch_size / per_token_s / found.num_ranks / 1e12


def _hidden(graph: ModuleGraph) -> int:
    return features(next(node for node in graph.nodes if is_embedding(node, graph)))[1]


def largest_batch(setup: Setup) -> int:
    """The largest batch that fits; 0 when not even one sequence does."""
    low, high = 0, 1
    while high <= _LARGEST_BATCH and _outcome(setup, high).fits:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _outcome(setup, middle).fits else (low, middle)
    return low


class LadderResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest batch of one table's ladder that fits, published and predicted."""

    runtime: str
    published: int
    predicted: int

    @property
    def steps(self) -> int:
        """How far apart they are on the ladder; positive when the prediction is too large."""
        return _step(self.predicted) - _step(self.published)


def _step(batch_size: int) -> int:
    return LADDER.index(batch_size) if batch_size else -1


def ladders(found: Iterable[ComparedRow]) -> tuple[LadderResult, ...]:
    """One result for each table that ends in a run out of memory."""
    tables: dict[str, list[PublishedRow]] = {}
    for line in found:
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
