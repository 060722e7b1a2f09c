"""The plan, and its file: where everything is stored and runs, and what that is predicted to take.

`plan.json` is this module's `Plan` as JSON, keys equal to field names; reading it gives an equal plan.
`schema()` is its JSON Schema.
"""

from pathlib import Path
from typing import Any, Final

import msgspec

from planner.errors import PlanFileError
from planner.schema.breakdown import MemoryBreakdown, TimeBreakdown, shortage
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
    """The model that a plan is for.

    Attributes:
        name: the name that the user typed.
        auto_class: `causal-lm`, `seq2seq-lm` or `masked-lm`.
        model_class: the transformers class.
        config_sha256: SHA-256 of the canonical configuration; a checkpoint with another one does not fit the
            plan.
        num_parameters: parameters, tied ones counted once.
        no_split: classes of the no-split blocks.
        source: where the configuration can be found: a shipped name, a folder's path, or a hub id; None for a
            model that was built in Python.
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
    """One entry of the device map: where its weights are stored and where it runs.

    Attributes:
        module: fqn of the module, the key of the entry.
        stored_on: `gpu:N`, `cpu`, `disk` or `peers` (partitioned over the GPUs of all ranks).
        runs_on: `gpu:N` or `cpu`.
        num_bytes: bytes of its parameters, a tied tensor counted at its first owner.
    """

    module: str
    stored_on: str
    runs_on: str
    num_bytes: int


class Prediction(_Strict, frozen=True, kw_only=True):
    """Predicted memory, time and price of a plan.

    Attributes:
        memory: device → phase → bytes.
        time: phase → seconds; `decode` is the mean step.
        total_s: seconds of the prefill and all decode steps.
        tokens_per_s: generated tokens of all sequences divided by `total_s`.
        usd_per_million_tokens: price of a million tokens at the profile's price, or None without one.
        load_s: seconds to read the checkpoint and to place it.
        source: the weakest source of any number that it was computed from.
    """

    memory: dict[str, dict[str, MemoryBreakdown]]
    time: dict[str, TimeBreakdown]
    total_s: float
    tokens_per_s: float
    usd_per_million_tokens: float | None
    load_s: float
    source: Source


class Alternative(_Strict, frozen=True, kw_only=True):
    """A configuration that was considered and not chosen.

    Attributes:
        runtime: name of the runtime.
        label: the configuration in words.
        batch_size: its best batch, or the one asked for; 0 where it cannot run at all.
        fits: whether it can run.
        reason: why it was not chosen.
        num_ranks: processes that would run it.
        deficit_bytes: when it does not fit, the bytes missing on `deficit_device`.
        deficit_device: when it does not fit, the device with the largest shortage.
        prefill_s: when it fits, seconds of the prefill.
        decode_s: when it fits, seconds of the mean decode step.
        tokens_per_s: when it fits, generated tokens of all sequences per second.
        usd_per_million_tokens: when it fits, price of a million tokens, or None without a price.
        load_s: when it fits, seconds to read the checkpoint and to place it.
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
    """Everything that a runtime needs to run the model, and the prediction and reasons for a reader.

    Attributes:
        schema_version: version of this file format.
        tool_version: version of the planner.
        model: the model.
        hardware: the machine, complete.
        request: what was asked; the same request on the same machine leads to this plan again.
        workload: what is run: the request's lengths, at the batch and in the dtype that were chosen.
        execution: the runtime and its configuration.
        label: the configuration in words.
        placements: entries of the device map in execution order, disjoint; they cover every tensor once. With
            several ranks they are rank 0's, whose GPU is `gpu:0`; every rank has its own of the same sizes.
        split_blocks: no-split blocks whose parts are stored in different places → the device they run on.
        prediction: memory, time and price.
        kept_pages_max_tokens: where the CPU runs the whole model, the most tokens of all sequences with which
            the script lets the C library retain heap pages; None where it never does.
        alternatives: the other configurations, and why they were not chosen.
        notes: sentences about this plan that a user should read, each without its final period.
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
        """The request's objective, by which the plan is the best."""
        return self.request.objective

    @property
    def runtime(self) -> str:
        """Name of the runtime that runs it."""
        return self.execution.runtime

    @property
    def main_device(self) -> str:
        """The device that the root module and streamed modules run on."""
        return self.execution.main

    @property
    def host_copies(self) -> str:
        """Kind of host memory of weights that are streamed to a GPU: `pinned` or `pageable`."""
        return self.execution.host_copies

    @property
    def kv_cache(self) -> str:
        """Where the KV cache is: `device` or `offloaded`."""
        return self.execution.kv_cache

    @property
    def num_ranks(self) -> int:
        """Processes that run the plan."""
        return self.execution.num_ranks

    @property
    def num_streams(self) -> int:
        """Ranks that generate sequences of their own; the workload's batch is of all of them together."""
        return self.execution.num_streams

    @property
    def weight_bits(self) -> int | None:
        """Width to which the runtime quantizes weights as it loads them, or None."""
        return self.execution.weight_bits

    @property
    def fits(self) -> bool:
        """Whether no device lacks memory in any phase."""
        return shortage(self.prediction.memory) is None

    def with_execution(self, **changes: Any) -> "Plan":
        """The same plan with some fields of its execution configuration changed."""
        return msgspec.structs.replace(self, execution=msgspec.structs.replace(self.execution, **changes))

    def device_map(self) -> dict[str, str | int]:
        """The map that `from_pretrained(device_map=…)` takes: module → GPU index, `cpu` or `disk`."""
        return {p.module: device_map_value(p.stored_on) for p in self.placements}


def device_map_value(device: str) -> str | int:
    """A device as a value of Accelerate's map: the index of `gpu:N`; `cpu` and `disk` are unchanged."""
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
        payload: content of a plan.json.
        origin: name of the file in an error message.

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
    """The plan of an emitted folder, or of the plan.json itself.

    Raises:
        PlanFileError: there is no plan, or it cannot be decoded.
    """
    path = folder / PLAN_FILE if folder.is_dir() else folder
    try:
        return decode(path.read_bytes(), origin=str(path))
    except OSError as error:
        raise PlanFileError(f"cannot read a plan from {folder}: {error.strerror}") from error
