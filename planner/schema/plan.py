"""The plan: a value that says where everything lives, and a file that survives a round trip.

`plan.json` is this module's `Plan` as JSON, keys equal to field names. `schema()` describes it.
"""

from pathlib import Path
from typing import Any, Final

import msgspec

from planner.errors import PlanFileError
from planner.schema.breakdown import MemoryBreakdown, TimeBreakdown
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Source
from planner.schema.workload import Workload

SCHEMA_VERSION: Final = 2
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
    """

    name: str
    auto_class: str
    model_class: str
    config_sha256: str
    num_parameters: int
    no_split: tuple[str, ...] = ()


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


class Plan(_Strict, frozen=True, kw_only=True):
    """Everything a runtime needs and everything a reader asks.

    Attributes:
        schema_version: of this file format.
        tool_version: of the planner.
        model, hardware, workload: the input, complete.
        objective: `latency`, `throughput` or `cost`.
        runtime: name of the runtime that runs it.
        label: the way it is run, in words.
        host_copies: `pinned` or `pageable`, for weights that live on the CPU and run on a GPU.
        kv_cache: `device` (with the block that fills it) or `offloaded` (kept in host memory).
        main_device: where the root module's tensors and every streamed module run.
        placements: in execution order, disjoint, every tensor covered once. With several ranks they are
            rank 0's, whose GPU is `gpu:0`; every rank has its own of the same sizes.
        split_blocks: no-split blocks whose parts live in different places → where they execute.
        prediction: memory and time.
        alternatives: what lost, and why.
        notes: sentences about this plan that a user should read.
        num_ranks: processes that run it, one for each GPU in use (or, on the CPU, so many all the same).
        num_streams: ranks that generate sequences of their own; 1 when all work on the same ones. The
            workload's batch is of all streams together.
        weight_bits: width of weights that the runtime quantizes as it loads them, or None.
    """

    schema_version: int
    tool_version: str
    model: ModelRef
    hardware: HardwareProfile
    workload: Workload
    objective: str
    runtime: str
    label: str
    host_copies: str
    kv_cache: str
    main_device: str
    placements: tuple[Placement, ...]
    split_blocks: dict[str, str]
    prediction: Prediction
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()
    num_ranks: int = 1
    num_streams: int = 1
    weight_bits: int | None = None

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
