"""The plan: a value that says where everything lives, and a file that survives a round trip.

`plan.json` is this module's `Plan` as JSON, keys equal to field names. `schema()` describes it.
"""

from pathlib import Path
from typing import Any, Final

import msgspec

from planner.errors import PlanFileError
from planner.schema.breakdown import MemoryBreakdown, TimeBreakdown
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.notebook import ShownInNotebook
from planner.schema.quantity import Source
from planner.schema.request import Request
from planner.schema.workload import Workload

SCHEMA_VERSION: Final = 3
PLAN_FILE: Final = "plan.json"


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen, keyword-only; an unknown key is an error."""


class ModelRef(_Strict, frozen=True, kw_only=True):
    """Which model the plan is for.

    Attributes:
        name: what the user typed.
        auto_class: `causal-lm`, `seq2seq-lm` or `masked-lm`.
        model_class: the transformers class.
        config_sha256: of the canonical configuration; a checkpoint with another does not fit the plan.
        num_parameters: ties counted once.
        no_split: classes of the no-split blocks.
        source: where the configuration is found again: a shipped name, a folder's path, or a hub id; None for
            a model that was built by hand.
        revision: the hub's commit, or None.
    """

    name: str
    auto_class: str
    model_class: str
    config_sha256: str
    num_parameters: int
    no_split: tuple[str, ...] = ()
    source: str | None = None
    revision: str | None = None


class Placement(_Strict, frozen=True, kw_only=True):
    """One module that owns tensors: where its weights live and where it runs.

    Attributes:
        module: fqn, a key of the device map.
        stored_on: `gpu:N`, `cpu`, `disk` or `peers` (cut over the GPUs of all ranks).
        runs_on: `gpu:N` or `cpu`.
        num_bytes: its parameters and buffers, a tied tensor counted at its first owner.
    """

    module: str
    stored_on: str
    runs_on: str
    num_bytes: int


class Prediction(_Strict, frozen=True, kw_only=True):
    """What the plan is expected to take.

    Attributes:
        memory: device → phase → bytes.
        time: phase → seconds; `decode` is the mean step.
        total_s: prefill and all decode steps.
        tokens_per_s: generated tokens of all sequences over `total_s`.
        usd_per_million_tokens: at the profile's price, or None.
        load_s: reading the checkpoint and placing it.
        source: the weakest source of any number that went in.
    """

    memory: dict[str, dict[str, MemoryBreakdown]]
    time: dict[str, TimeBreakdown]
    total_s: float
    tokens_per_s: float
    usd_per_million_tokens: float | None
    load_s: float
    source: Source


class Alternative(_Strict, frozen=True, kw_only=True):
    """Something else that was priced and not chosen.

    Attributes:
        runtime: its name.
        label: what it is, in words.
        num_ranks: its processes.
        batch_size: its best batch, or the one asked for.
        fits: whether it can run.
        deficit_bytes: when it does not fit, the smallest number of bytes short, on `deficit_device`.
        prefill_s, decode_s, tokens_per_s, usd_per_million_tokens, load_s: predictions when it fits.
        reason: why it lost.
    """

    runtime: str
    label: str
    batch_size: int
    fits: bool
    reason: str
    num_ranks: int = 1
    deficit_bytes: int = 0
    deficit_device: str = ""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens_per_s: float = 0.0
    usd_per_million_tokens: float | None = None
    load_s: float = 0.0

    @property
    def name(self) -> str:
        """The runtime, and its ranks where it has several: `deepspeed-tp ×8`."""
        return f"{self.runtime} ×{self.num_ranks}" if self.num_ranks > 1 else self.runtime


class Plan(_Strict, ShownInNotebook, frozen=True, kw_only=True):
    """Everything a runtime needs and everything a reader asks.

    Attributes:
        schema_version: of this file format.
        tool_version: of the planner.
        model, hardware: the input, complete.
        request: what was asked; the same request on the same machine leads to this plan again.
        workload: what is run: the request's lengths, at the batch and in the dtype that were chosen.
        execution: the runtime and its configuration.
        label: the configuration in words.
        placements: in execution order, disjoint, every tensor covered once. With several ranks they are
            rank 0's, whose GPU is `gpu:0`; every rank has its own of the same sizes.
        split_blocks: no-split blocks whose parts live in different places → where they execute.
        prediction: memory and time.
        kept_pages_max_tokens: on a processor that runs everything, up to how many tokens of all sequences the
            script has the C library retain heap pages; None where it never does.
        alternatives: what lost, and why.
        notes: sentences about this plan that a user should read.
    """

    schema_version: int
    tool_version: str
    model: ModelRef
    hardware: HardwareProfile
    request: Request
    workload: Workload
    execution: ExecutionConfig
    label: str
    placements: tuple[Placement, ...]
    split_blocks: dict[str, str]
    prediction: Prediction
    kept_pages_max_tokens: int | None = None
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        """What the plan is the best for."""
        return self.request.objective

    @property
    def runtime(self) -> str:
        """Name of the runtime that runs it."""
        return self.execution.runtime

    @property
    def main_device(self) -> str:
        """Where the root module's tensors are and every streamed module runs."""
        return self.execution.main

    @property
    def host_copies(self) -> str:
        """`pinned` or `pageable`."""
        return self.execution.host_copies

    @property
    def kv_cache(self) -> str:
        """`device` or `offloaded`."""
        return self.execution.kv_cache

    @property
    def num_ranks(self) -> int:
        """Processes that run it."""
        return self.execution.num_ranks

    @property
    def num_streams(self) -> int:
        """Ranks that generate sequences of their own; the workload's batch is of all of them together."""
        return self.execution.num_streams

    @property
    def weight_bits(self) -> int | None:
        """Width to which the runtime quantizes weights as it loads them."""
        return self.execution.weight_bits

    @property
    def fits(self) -> bool:
        """Whether no device lacks memory in any phase."""
        return all(part.free >= 0 for phases in self.prediction.memory.values() for part in phases.values())

    def with_execution(self, **changes: Any) -> "Plan":
        """The same plan with some fields of its execution configuration changed."""
        return msgspec.structs.replace(self, execution=msgspec.structs.replace(self.execution, **changes))

    def device_map(self) -> dict[str, str | int]:
        """The map that `from_pretrained(device_map=…)` takes: module → GPU index, `cpu` or `disk`."""
        return {p.module: device_map_value(p.stored_on) for p in self.placements}


def device_map_value(device: str) -> str | int:
    """`gpu:1` as Accelerate writes it (1); `cpu` and `disk` stay."""
    return int(device.removeprefix("gpu:")) if device.startswith("gpu:") else device


def schema() -> dict[str, Any]:
    """JSON Schema of `plan.json`."""
    return msgspec.json.schema(Plan)


def encode(plan: Plan) -> bytes:
    """The plan as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"


def decode(payload: bytes, *, origin: str = PLAN_FILE) -> Plan:
    """A plan from JSON.

    Args:
        payload: bytes of a plan.json.
        origin: what to call it in an error.

    Raises:
        PlanFileError: not JSON, not a plan, or a plan of another schema version.
    """
    try:
        version = msgspec.json.decode(payload, type=_Versioned).schema_version
        if version != SCHEMA_VERSION:
            raise PlanFileError(
                f"{origin} has schema version {version}; this planner reads {SCHEMA_VERSION}: plan again"
            )
        return msgspec.json.decode(payload, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PlanFileError(f"{origin} is not a plan: {error}") from error


class _Versioned(msgspec.Struct):
    schema_version: int


def read(folder: Path) -> Plan:
    """The plan of an emitted folder (or of a path to the plan.json itself).

    Raises:
        PlanFileError: there is none, or it is damaged.
    """
    path = folder / PLAN_FILE if folder.is_dir() else folder
    try:
        return decode(path.read_bytes(), origin=str(path))
    except OSError as error:
        raise PlanFileError(f"cannot read a plan from {folder}: {error.strerror}") from error
