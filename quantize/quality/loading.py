"""ZeRO-Inference's codes as an `Output`: DeepSpeed makes them while loading, and no file contains them.

The 8-bit ones along the input are the plain format's; these are the others: 4 bits, and groups of rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from reshard.encoding import Encoded, Encoder
from reshard.formats.base import Source
from reshard.layout import Box
from reshard.tensors import LogicalTensor

from ..formats import plain
from ..formats.base import Output
from ..formats.encoders import RowEncoder
from ..groups import blocks, zero_inference
from ..scheme import Scheme, ZeroInference
from ..select import Decision

_NOTE: Final = "ZeRO-Inference makes these codes as it loads the plain checkpoint"


def output_of(scheme: Scheme, *, allow_nonfinite: bool = False) -> Output:
    """What a scheme makes of weights, in the plain format where that holds it.

    Raises:
        UnsupportedTargetError: a scheme that no format here holds.
    """
    if not isinstance(scheme, ZeroInference) or (scheme.bits == 8 and scheme.dim == 1):
        return plain.output(scheme, allow_nonfinite=allow_nonfinite)

    def derived(name: str, tensor: LogicalTensor) -> dict[str, LogicalTensor]:
        height, width = tensor.shape
        codes = (height, width * scheme.bits // 8)
        module = name.removesuffix(".weight")
        table = LogicalTensor(dtype=tensor.dtype, shape=_table(scheme.scale_shape(tensor.shape)))
        return {
            name: LogicalTensor(dtype="uint8", shape=codes),
            f"{module}.{plain.SCALE}": table,
            f"{module}.{plain.MINIMUM}": table,
        }

    def encoder(name: str, tensor: LogicalTensor) -> Encoder:
        row_encoder = RowEncoder(name, tensor.dtype, _encode(name, scheme), allow_nonfinite=allow_nonfinite)
        row_encoder.rows = scheme.group_size if scheme.dim == 0 else 1
        return row_encoder

    def config(source: Source, decisions: Mapping[str, Decision]) -> dict[str, Any]:
        return {"quant_method": plain.METHOD, "scheme": msgspec.to_builtins(scheme)}

    return Output(
        name="zero-inference",
        target="huggingface",
        derived=derived,
        encoder=encoder,
        config=config,
        notes=lambda _: (_NOTE,),
    )


def _encode(name: str, scheme: ZeroInference) -> Any:
    module = name.removesuffix(".weight")

    def encode(box: Box, block: blocks.Block) -> Iterable[Encoded]:
        encoded = zero_inference.encode(block, group_size=scheme.group_size, dim=scheme.dim, bits=scheme.bits)
        assert encoded.minimum is not None
        yield name, (box[0], (0, encoded.codes.shape[1])), encoded.codes
        for table, kept in ((plain.SCALE, encoded.scales), (plain.MINIMUM, encoded.minimum)):
            yield f"{module}.{table}", *_placed(box, scheme, kept)

    return encode


def _placed(box: Box, scheme: ZeroInference, kept: NDArray[Any]) -> tuple[Box, NDArray[Any]]:
    """A strip's scales or minima as a matrix, and where in the tensor's they are."""
    flat = kept.reshape(_table(kept.shape))
    step = scheme.group_size if scheme.dim == 0 else 1
    first = box[0][0] // step
    return ((first, first + len(flat)), (0, flat.shape[1])), np.ascontiguousarray(flat)


def _table(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of scales as DeepSpeed keeps them, without the 1 that stands for the group."""
    return (shape[0], shape[1] * shape[2])
