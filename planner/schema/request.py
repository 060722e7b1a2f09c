"""What a user asks the planner for: lengths, batch, objective and limits."""

from typing import Final

import msgspec

from planner.errors import InvalidInputError
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import DTYPE_BYTES, Workload

OBJECTIVES: Final = ("latency", "throughput", "cost")

#: The dtype of a request that prices every dtype with a rate on the machine and takes the best.
ANY_DTYPE: Final = "any"


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request to the planner.

    Attributes:
        prompt_tokens: tokens of each prompt.
        new_tokens: tokens generated for each sequence.
        batch_size: number of sequences; None for `min_batch` with the objective `latency`, and otherwise for
            the best of `BATCH_LADDER`.
        min_batch: the smallest batch that may be chosen.
        max_latency_s: limit on the seconds of the whole `generate()` call, or None.
        objective: `latency` (least time of the call), `throughput` (most tokens per second) or `cost`
            (lowest price per token; the profile needs a price).
        dtype: a dtype, `any` for the best one, or None for the model's own where the machine runs it.
        runtimes: names of the runtimes to consider; None for all.
        weight_bits: width to which the runtime quantizes weights as it loads them, 4 or 8; None for none.
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
        """The request for one workload in one configuration, such as those of a user's own device map."""
        return cls(
            prompt_tokens=workload.prompt_tokens,
            new_tokens=workload.new_tokens,
            batch_size=workload.batch_size,
            dtype=workload.dtype,
            runtimes=(execution.runtime,),
            weight_bits=execution.weight_bits,
        )

    def workload(self, dtype: str) -> Workload:
        """The workload in `dtype` at the batch that was asked for, or the smallest allowed one."""
        return Workload(
            batch_size=self.batch_size or self.min_batch,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            dtype=dtype,
        )

    def dtypes(self, profile: HardwareProfile, model_dtype: str | None) -> tuple[str, ...]:
        """The dtypes to price, the preferred one first.

        Args:
            profile: the machine; a dtype is native when it has a rate for it.
            model_dtype: dtype of the checkpoint, or None when its configuration does not say.
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
