"""Rows of a benchmark, and the JSON lines file that contains them together with their plans.

A file is self-contained: each plan, with its hardware profile, precedes its rows, so that the rows can be
priced again with another cost model.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Final, Literal

import msgspec

from planner.errors import BadFileError
from planner.schema.breakdown import TimeBreakdown
from planner.schema.plan import Plan

SCHEMA_VERSION: Final = 1

#: Ranges of the values in a row, so that reading a damaged file is an error.
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the file's structs: frozen, keyword-only, and an unknown key in a file is an error."""


class Measured(_Strict, frozen=True, kw_only=True):
    """Measured time and memory at one batch size.

    Attributes:
        load_s: time to load the model from the checkpoint.
        prefill_s: time until the first token's logits; mean of several calls.
        decode_s: time of each decode step.
        gpu_peak_allocated_bytes, gpu_peak_reserved_bytes: peak of each GPU's allocator during generation,
            without the CUDA context.
        host_peak_bytes: peak resident set of all processes together during generation.
        load_host_peak_bytes: the same during loading.
        devices: names of the GPUs.
    """

    load_s: Seconds
    prefill_s: Seconds
    decode_s: tuple[Seconds, ...]
    gpu_peak_allocated_bytes: tuple[Bytes, ...]
    gpu_peak_reserved_bytes: tuple[Bytes, ...]
    host_peak_bytes: Bytes
    load_host_peak_bytes: Bytes
    devices: tuple[str, ...]

    @property
    def mean_decode_s(self) -> float:
        """Mean time of a decode step, the value that is predicted; 0 when one token was generated."""
        return fmean(self.decode_s) if self.decode_s else 0.0

    def decode_at(self, share: float) -> float:
        """Time that `share` (0 to 1) of the decode steps do not exceed; 0 when one token was generated."""
        return percentile(self.decode_s, share) if self.decode_s else 0.0


class Predicted(_Strict, frozen=True, kw_only=True):
    """Predicted time and memory at one batch size.

    Attributes:
        load_s, prefill_s, decode_s: seconds; `decode_s` is the mean time of a decode step.
        tokens_per_s: throughput of all sequences together.
        gpu_bytes: peak memory of each GPU, without the CUDA context, to compare with the allocator's.
        host_bytes: peak memory of all processes together.
        fits: whether it fits the profile's machine, or the memory cap.
        time: phase → parts of the time.
        source: the least reliable source of any number used.
    """

    load_s: float
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    gpu_bytes: tuple[int, ...]
    host_bytes: int
    fits: bool
    time: dict[str, TimeBreakdown]
    source: str


class Row(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="row"):
    """One batch size of one plan or baseline.

    Attributes:
        schema_version: version of this format.
        date: of the run, in ISO format.
        name: name of the plan's folder, or of the baseline.
        plan_sha256: hash in the plan's record in the same file.
        model, runtime, dtype: of the plan.
        batch_size: sequences of all streams together.
        prompt_tokens, new_tokens: lengths of each sequence.
        weights: `checkpoint`, or `random` when no checkpoint was given.
        memory_cap_bytes: limit of each GPU's memory, including the CUDA context; None: no limit.
        status: `ok`, `out_of_memory` or `failed`.
        said: the error's message; empty when the status is `ok`.
        measured: None unless the status is `ok`.
        predicted: None for a baseline that the cost model cannot predict.
        versions: library → version.
    """

    schema_version: int = SCHEMA_VERSION
    date: str
    name: str
    plan_sha256: str
    model: str
    runtime: str
    dtype: str
    batch_size: Count
    prompt_tokens: Count
    new_tokens: Count
    weights: Literal["checkpoint", "random"]
    memory_cap_bytes: Count | None
    status: Literal["ok", "out_of_memory", "failed"]
    said: str
    measured: Measured | None
    predicted: Predicted | None
    versions: dict[str, str]

    def __post_init__(self) -> None:
        if (self.measured is None) == (self.status == "ok"):
            raise ValueError(f"status {self.status!r} with{'out' * (self.measured is None)} measurements")

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all sequences divided by the time of the whole call; 0 when it did not run."""
        if self.measured is None:
            return 0.0
        total_s = self.measured.prefill_s + self.mean_steps * self.measured.mean_decode_s
        return self.batch_size * self.new_tokens / total_s

    @property
    def mean_steps(self) -> int:
        """Number of decode steps of one call."""
        return max(0, self.new_tokens - 1)


class PlanRecord(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="plan"):
    """A plan that rows of the same file refer to by its hash."""

    sha256: str
    plan: Plan


Record = Row | PlanRecord


def record_of(plan: Plan) -> PlanRecord:
    """A plan with the hash that its rows refer to."""
    return PlanRecord(sha256=hashlib.sha256(msgspec.json.encode(plan)).hexdigest(), plan=plan)


def percentile(samples: Sequence[float], share: float) -> float:
    """The value that `share` of the samples do not exceed, with linear interpolation.

    Raises:
        ValueError: there are no samples, or the share is outside 0 to 1.
    """
    if not samples or not 0 <= share <= 1:
        raise ValueError(f"the percentile {share} of {len(samples)} samples is undefined")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def append(path: Path, records: Sequence[Record]) -> None:
    """Append records to a file, one line each."""
    with path.open("ab") as stream:
        for record in records:
            stream.write(msgspec.json.encode(record) + b"\n")


def read(path: Path) -> tuple[Record, ...]:
    """Every record of a file.

    Raises:
        BadFileError: the file cannot be read, or a line is not a record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadFileError(f"cannot read benchmark rows {path}: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(msgspec.json.decode(line, type=Record))
        except msgspec.DecodeError as error:
            raise BadFileError(f"{path}, line {number}, is not a benchmark row: {error}") from error
    return tuple(records)
