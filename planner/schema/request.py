"""What a user may ask of a plan."""

from typing import Final

import msgspec

from planner.errors import InvalidInputError
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import DTYPE_BYTES, Workload

OBJECTIVES: Final = ("latency", "throughput", "cost")

#: Every dtype that fits is tried, and the best by the objective wins.
ANY_DTYPE: Final = "any"


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question to the planner.

    Attributes:
        prompt_tokens, new_tokens: lengths.
        batch_size: fixed, or None: 1 (or `min_batch`) for latency, the best of a ladder otherwise.
        min_batch: smallest batch worth having.
        max_latency_s: limit on the whole `generate()` call.
        objective: `latency` (least time of the call), `throughput` (most tokens per second) or `cost`
            (least money per token, so the profile needs a price).
        dtype: a dtype, `any` to choose, or None for the model's own where the machine runs it.
        runtimes: which to consider; None for all.
        weight_bits: let the runtime quantize weights to this width as it loads them; None: do not.
    """

    prompt_tokens: int = 128
    new_tokens: int = 32
    batch_size: int | None = None
    min_batch: int = 1
    max_latency_s: float | None = None
    objective: str = "latency"
    dtype: str | None = None
    runtimes: tuple[str, ...] | None = None
    weight_bits: int | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidInputError(
                f"unknown objective {self.objective!r}; choose from {', '.join(OBJECTIVES)}"
            )
        if self.weight_bits not in (None, 4, 8):
            raise InvalidInputError(f"weights can be quantized to 4 or 8 bits, not {self.weight_bits}")
        if self.min_batch < 1:
            raise InvalidInputError(f"the smallest batch must be at least 1, not {self.min_batch}")
        if self.batch_size is not None and self.batch_size < self.min_batch:
            raise InvalidInputError(
                f"batch size {self.batch_size} is below the smallest allowed, {self.min_batch}"
            )
        if self.max_latency_s is not None and not self.max_latency_s > 0:
            raise InvalidInputError(f"a latency limit must be positive, not {self.max_latency_s} s")
        if self.dtype not in (None, ANY_DTYPE):
            self.workload("float32" if self.dtype is None else self.dtype)

    @classmethod
    def of_workload(cls, workload: Workload, execution: ExecutionConfig) -> "Request":
        """The request for exactly one workload in one configuration, as a user's own files state it."""
        return cls(
            prompt_tokens=workload.prompt_tokens,
            new_tokens=workload.new_tokens,
            batch_size=workload.batch_size,
            dtype=workload.dtype,
            runtimes=(execution.runtime,),
            weight_bits=execution.weight_bits,
        )

    def workload(self, dtype: str) -> Workload:
        """The workload at a dtype and the smallest batch in question."""
        return Workload(
            batch_size=self.batch_size or self.min_batch,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            dtype=dtype,
        )

    def dtypes(self, profile: HardwareProfile, model_dtype: str | None) -> tuple[str, ...]:
        """The dtypes to price, most wanted first.

        Args:
            profile: what runs natively is what it has a rate for.
            model_dtype: what the checkpoint was saved in, or None when its configuration does not say.
        """
        native = [d for d in DTYPE_BYTES if d in profile.native_flops_per_s]
        if self.dtype == ANY_DTYPE:
            return tuple(native)
        if self.dtype is not None:
            return (self.dtype,)
        if model_dtype in native:
            return (model_dtype,)
        if profile.gpu is None:
            return ("float32",)
        return ("bfloat16",) if "bfloat16" in native and model_dtype == "bfloat16" else ("float16",)
