"""Rows of a benchmark, and the file of JSON lines that keeps them with the plans that they are of.

A file is complete in itself: each plan, with its machine's profile, stands once before its rows, so that
whoever fits the cost model to the rows can price them again.
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

#: What a benchmark cannot have written otherwise, so that a damaged file is refused where it is read.
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen, keyword-only, and an unknown key in a file is an error."""


class Measured(_Strict, frozen=True, kw_only=True):
    """What one batch took.

    Attributes:
        load_s: from the checkpoint to a model that is ready.
        prefill_s: until the first token's logits; the mean of several.
        decode_s: each later token's step.
        gpu_peak_allocated_bytes, gpu_peak_reserved_bytes: while generating, of each GPU; the context is in
            neither.
        host_peak_bytes: resident set of all processes while generating.
        load_host_peak_bytes: the same while loading.
        devices: the GPUs' names.
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
        """The mean step, which is what is predicted; 0 with one token."""
        return fmean(self.decode_s) if self.decode_s else 0.0

    def decode_at(self, share: float) -> float:
        """The step that `share` of the steps do not exceed; 0 with one token."""
        return percentile(self.decode_s, share) if self.decode_s else 0.0


class Predicted(_Strict, frozen=True, kw_only=True):
    """What the cost model says of the same.

    Attributes:
        load_s, prefill_s, decode_s: seconds; `decode_s` is the mean step.
        tokens_per_s: of all sequences.
        gpu_bytes: of each GPU, its context left out as the allocator's figures do.
        host_bytes: of all processes.
        fits: on the machine of the profile, or under the memory cap.
        time: phase → parts of the time.
        source: the weakest of any number in it.
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
    """One batch of one plan or baseline.

    Attributes:
        schema_version: of this format.
        date: ISO.
        name: the plan's folder, or the baseline.
        plan_sha256: of the plan's record in the same file.
        model, runtime, dtype: of the plan.
        batch_size: sequences of all streams together.
        prompt_tokens, new_tokens: lengths.
        weights: `checkpoint`, or `random` when no checkpoint was given.
        memory_cap_bytes: what stood in for the GPU's memory, its context included; None: all of it.
        status: `ok`, `out_of_memory` or `failed`.
        said: when it is not `ok`: why, in the words of what failed.
        measured: None unless `ok`.
        predicted: None for a baseline that the cost model has no law for.
        versions: of the libraries that ran.
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
        """Generated tokens of all sequences over the whole call; 0 when it did not run."""
        one = self.measured
        if one is None:
            return 0.0
        total = one.prefill_s + self.mean_steps * one.mean_decode_s
        return self.batch_size * self.new_tokens / total

    @property
    def mean_steps(self) -> int:
        """Decode steps of one call."""
        return max(0, self.new_tokens - 1)


class PlanRecord(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="plan"):
    """A plan that rows are of."""

    sha256: str
    plan: Plan


Record = Row | PlanRecord


def record_of(plan: Plan) -> PlanRecord:
    """A plan with the name that its rows call it by."""
    return PlanRecord(sha256=hashlib.sha256(msgspec.json.encode(plan)).hexdigest(), plan=plan)


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` of the samples lie, between neighbours by proportion.

    Raises:
        ValueError: no samples, or a share outside 0 to 1.
    """
    if not samples or not 0 <= share <= 1:
        raise ValueError(f"no {share} percentile of {len(samples)} samples")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def append(path: Path, records: Sequence[Record]) -> None:
    """Add records to a file, one line each; what is there stays."""
    with path.open("ab") as stream:
        for record in records:
            stream.write(msgspec.json.encode(record) + b"\n")


def read(path: Path) -> tuple[Record, ...]:
    """Every record of a file.

    Raises:
        BadFileError: it cannot be read, or a line is no record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadFileError(f"cannot read benchmark rows {path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(msgspec.json.decode(line, type=Record))
        except msgspec.DecodeError as error:
            raise BadFileError(f"{path}, line {number}, is no benchmark row: {error}") from error
    return tuple(found)
