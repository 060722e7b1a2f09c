"""`bitsandbytes`: int8 rows with `SCB`, as transformers writes and reads `load_in_8bit` checkpoints.

Source: bitsandbytes 0.50, `Int8Params` and `Linear8bitLt`; transformers 5.23, `quantizer_bnb_8bit.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from reshard.encoding import Encoded, Encoder
from reshard.errors import UnsupportedTargetError
from reshard.formats.base import Source
from reshard.layout import Box
from reshard.tensors import LogicalTensor

from ..families import OWN_LINEARS
from ..groups import blocks, row_absmax
from ..select import Decision
from .base import Output
from .compressed_tensors import ignored
from .encoders import RowEncoder

#: `weight_format`: rows as they are, the only layout that is saved today.
_ROW: Final = 0


def output(*, allow_nonfinite: bool = False) -> Output:
    """The format; it has one scheme."""

    def encoder(name: str, tensor: LogicalTensor) -> Encoder:
        def encode(box: Box, block: blocks.Block) -> Iterable[Encoded]:
            return _strips(name, box, row_absmax.encode(block))

        return RowEncoder(name, tensor.dtype, encode, allow_nonfinite=allow_nonfinite)

    return Output(
        name="bitsandbytes",
        target="huggingface",
        derived=_derived,
        encoder=encoder,
        config=_config,
        notes=lambda _: ("transformers loads it, with bitsandbytes installed",),
    )


def _derived(name: str, tensor: LogicalTensor) -> dict[str, LogicalTensor]:
    module = name.removesuffix(".weight")
    return {
        name: LogicalTensor(dtype="int8", shape=tensor.shape),
        f"{module}.SCB": LogicalTensor(dtype="float32", shape=tensor.shape[:1]),
        f"{module}.weight_format": LogicalTensor(dtype="uint8", shape=()),
    }


def _strips(name: str, box: Box, encoded: blocks.Encoded) -> Iterable[Encoded]:
    module = name.removesuffix(".weight")
    yield name, box, encoded.codes
    yield f"{module}.SCB", box[:1], encoded.scales
    if box[0][0] == 0:
        yield f"{module}.weight_format", (), np.array(_ROW, np.uint8)


def _config(source: Source, decisions: Mapping[str, Decision]) -> dict[str, Any]:
    if source.model.model_type in OWN_LINEARS:
        raise UnsupportedTargetError(
            f"transformers replaces no Linear of {source.model.model_type}, whose class is the family's own, "
            "by one of bitsandbytes; take `format='compressed-tensors'`"
        )
    return {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": ignored(source, decisions),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }
