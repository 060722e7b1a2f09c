"""Which weights DeepSpeed's ZeRO-Inference quantizes, and how many bytes they take then. Pure: no torch.

DeepSpeed replaces modules whose class is exactly `torch.nn.Linear` or `torch.nn.Embedding`, never a class
derived from them, and never a tensor that belongs to another module, such as stacked experts:

- `post_init_quant`: a module is quantized when its name contains one of the block's keys. DeepSpeed stops
  when a name contains two keys, and when a weight is not float16.
- `quantized_initialization`: every such module is quantized as it is built.

Both stop when groups do not tile a weight. A quantized weight is one flat parameter in the model's dtype:
codes, then scales, then minima. It stays packed in the store, on the link and on the GPU; a decoded copy
exists only while its module runs.

Source: DeepSpeed 0.19.8, `inference/quantization/{quantization,layers,utils}.py` and
`runtime/zero/partition_parameters.py`, `Init._post_init_method`.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from reshard.errors import CheckpointError, UnsupportedTargetError

from .errors import GroupSizeError
from .families import FLOAT32
from .scheme import ZeroInference

#: The dimension that groups run along unless another is asked for: the output. Groups along the input whose
#: size is a multiple of 8 are decoded by a CUDA kernel only: such a configuration does not run without a GPU.
GROUP_DIM: Final = 0
#: The largest group that is chosen.
LARGEST_GROUP: Final = 64

#: Classes that DeepSpeed replaces.
REPLACED: Final = ("Linear", "Embedding")
#: How transformers' classes of stacked experts end.
EXPERTS: Final = "Experts"
#: Why nothing is quantized in a model without a Linear in its blocks.
NO_LINEAR: Final = "no Linear in its blocks is chosen, and nothing else is quantized"


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of a model as it runs.

    Attributes:
        module: fqn of the module that owns it.
        class_name: the module's Python class.
        parameter: its name inside the module.
        shape: its dimensions; of a Linear [out, in].
        model_type: transformers' `model_type`.
    """

    module: str
    class_name: str
    parameter: str = "weight"
    shape: tuple[int, ...]
    model_type: str = ""

    @property
    def name(self) -> str:
        """Its full name."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter

    @property
    def is_replaced(self) -> bool:
        """Whether DeepSpeed quantizes it where it is told to."""
        return self.class_name in REPLACED and self.parameter == "weight"

    @property
    def is_float32(self) -> bool:
        """Whether transformers keeps it in float32 in a float16 model."""
        return self.module.rpartition(".")[2] == FLOAT32.get(self.model_type)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a weight cannot be quantized.

    Attributes:
        name: the weight's.
        reason: a clause.
        hint: what to do about it; fields of a request stand in backticks; may be empty.
        error: what to raise with it.
    """

    name: str
    reason: str
    hint: str = ""
    error: type[CheckpointError] = UnsupportedTargetError

    @property
    def sentence(self) -> str:
        """The weight and the reason."""
        return f"{self.name}: {self.reason}"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What of some weights is quantized.

    Attributes:
        scheme: bits, group size and dimension of all of them.
        weights: those that are.
        refusals: why the others are not.
    """

    scheme: ZeroInference
    weights: tuple[Weight, ...]
    refusals: tuple[Refusal, ...]


def refusal(weight: Weight, scheme: ZeroInference) -> Refusal | None:
    """Why DeepSpeed would pass over a weight or stop at it; None when it quantizes it."""
    passed_over = _passed_over(weight)
    if passed_over is not None:
        return passed_over
    if weight.is_float32:
        return Refusal(
            name=weight.name,
            reason="transformers keeps it in float32, and DeepSpeed quantizes float16 only",
            hint=f"leave it out: `exclude='*.{FLOAT32[weight.model_type]}'`",
        )
    try:
        check_shape(weight.shape, scheme)
    except GroupSizeError as error:
        hint = f"leave it out: `exclude='{weight.name}'`"
        return Refusal(name=weight.name, reason=str(error), hint=hint, error=GroupSizeError)
    return None


def _passed_over(weight: Weight) -> Refusal | None:
    if weight.class_name.endswith(EXPERTS):
        return Refusal(
            name=weight.name,
            reason="transformers stacks experts into tensors that no Linear has, which DeepSpeed passes over",
            hint="leave them out: `exclude='*.experts.*'`",
        )
    if weight.class_name.endswith("Embedding"):
        return Refusal(
            name=weight.name,
            reason="DeepSpeed quantizes plain Embeddings and passes over those of derived classes",
            hint="leave embeddings out of `include`",
        )
    if not weight.is_replaced:
        return Refusal(
            name=weight.name,
            reason=f"DeepSpeed passes over every Linear of {weight.model_type}, which has a class of its own",
            hint="take another format",
        )
    return None


def check_shape(shape: tuple[int, ...], scheme: ZeroInference, *, itemsize_bytes: int = 2) -> None:
    """Check that groups tile a weight and that its codes fill whole elements of the model's dtype.

    Args:
        shape: of the weight, [out, in].
        scheme: bits, group size and dimension.
        itemsize_bytes: of the model's dtype.

    Raises:
        GroupSizeError: they do not.
    """
    scheme.scale_shape(shape)
    per_element = 8 * itemsize_bytes // scheme.bits
    if shape[-1] % per_element:
        raise GroupSizeError(
            f"DeepSpeed keeps {per_element} codes in one element of {8 * itemsize_bytes} bits, which do not "
            f"divide its input dimension of {shape[-1]}"
        )


def packed_elements(shape: tuple[int, ...], scheme: ZeroInference, *, itemsize_bytes: int = 2) -> int:
    """Elements of the model's dtype that a quantized weight takes: codes, one scale and minimum per group.

    Args:
        shape: of the weight, [out, in]; checked by `check_shape`.
        scheme: bits, group size and dimension.
        itemsize_bytes: of the model's dtype.
    """
    numel = shape[0] * shape[1]
    return numel * scheme.bits // (8 * itemsize_bytes) + 2 * numel // scheme.group_size


def choose(
    weights: Iterable[Weight], bits: int, *, group_size: int | None = None, dim: int = GROUP_DIM
) -> Choice:
    """Which of the weights are quantized, and in groups of which size.

    Args:
        weights: those that are wanted.
        bits: 8 or 4.
        group_size: weights per group; None: the largest power of two, up to 64, that divides all of them.
        dim: the dimension that groups run along; DeepSpeed's `group_dim`.

    Raises:
        InvalidSchemeError: no formula has these settings.
    """
    wanted = tuple(weights)
    smallest = ZeroInference(bits=bits, group_size=group_size or 2, dim=dim)
    refusals = {weight.name: refusal(weight, smallest) for weight in wanted}
    chosen = tuple(weight for weight in wanted if refusals[weight.name] is None)
    size = group_size or LARGEST_GROUP
    while group_size is None and any(weight.shape[dim] % size for weight in chosen):
        size //= 2
    return Choice(
        scheme=ZeroInference(bits=bits, group_size=size, dim=dim),
        weights=chosen,
        refusals=tuple(reason for reason in refusals.values() if reason is not None),
    )
