"""One `generate()` call: lengths, batch and element type."""

from typing import Final

import msgspec

from planner.errors import InvalidInputError

#: Element types that a model can be run in, with their size in bytes.
DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}

#: Batch sizes that a search considers when the batch is not given: every integer up to 64, then steps of
#: at most 6.25 %. They do not depend on the machine, so that more memory never removes a choice.
BATCH_LADDER: Final = (
    *range(1, 64),
    *range(64, 256, 4),
    *range(256, 1024, 16),
    *range(1024, 4096, 64),
    *range(4096, 16385, 256),
)


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `generate()` call.

    Attributes:
        batch_size: sequences generated together.
        prompt_tokens: tokens of each prompt (the encoder's input for an encoder-decoder).
        new_tokens: tokens generated for each; the first comes out of prefill.
        dtype: element type of weights, activations and KV cache.
    """

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    dtype: str

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_tokens", "new_tokens"):
            value = getattr(self, name)
            if value < 1:
                raise InvalidInputError(f"{name.replace('_', ' ')} must be at least 1, not {value}")
        if self.dtype not in DTYPE_BYTES:
            raise InvalidInputError(
                f"cannot run in dtype {self.dtype!r}; choose from {', '.join(DTYPE_BYTES)}"
            )

    @property
    def itemsize_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtype]

    def with_batch(self, batch_size: int) -> "Workload":
        """The same workload at another batch size."""
        return msgspec.structs.replace(self, batch_size=batch_size)
