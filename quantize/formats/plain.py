"""`safetensors`: this project's own format, int8 codes and scales, for runtimes that decode while streaming.

`weight` keeps its name and shape. `weight_scale` is stored beside it, and `weight_minimum` where codes are
not symmetric; `weight_chunk_scale` where chunks are not whole rows. `quantization_config` has the scheme.
Shards of any degree can be cut from it, as long as no group is cut.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from reshard.cuts import CHUNKS
from reshard.encoding import Encoded, Encoder
from reshard.errors import UnsupportedTargetError
from reshard.formats.base import Source
from reshard.layout import Box
from reshard.tensors import LogicalTensor

from ..groups import blocks, moq, rows, search, symmetric, zero_inference
from ..scheme import Groups, Moq, Rows, Scheme, Symmetric, SymmetricSearch, ZeroInference
from ..select import Decision
from .base import Output
from .encoders import FlatEncoder, RowEncoder

METHOD: Final = "offload-planner"
_NOTE: Final = "this project's runtimes decode it; `dequantize` makes a plain checkpoint of it"
SCALE: Final = "weight_scale"
MINIMUM: Final = "weight_minimum"


def output(scheme: Scheme, *, allow_nonfinite: bool = False) -> Output:
    """The format, for one scheme of 8 bits.

    Raises:
        UnsupportedTargetError: codes of fewer bits, or a scheme with a format of its own.
    """
    if scheme.bits != 8:
        raise UnsupportedTargetError(
            f"the plain format keeps one code per byte; {scheme.bits} bits are packed by compressed-tensors"
        )
    if not isinstance(scheme, Moq | Rows | Groups | Symmetric | SymmetricSearch | ZeroInference):
        raise UnsupportedTargetError(
            f"the scheme {scheme.name} has a format of its own: `format='bitsandbytes'`"
        )
    if isinstance(scheme, ZeroInference) and scheme.dim != 1:
        raise UnsupportedTargetError("the plain format takes zero-inference's groups along the input only")

    def derived(name: str, tensor: LogicalTensor) -> dict[str, LogicalTensor]:
        return _derived(name, tensor, scheme)

    def encoder(name: str, tensor: LogicalTensor) -> Encoder:
        return _encoder(name, tensor, scheme, allow_nonfinite=allow_nonfinite)

    def config(source: Source, decisions: Mapping[str, Decision]) -> dict[str, Any]:
        return _config(decisions, scheme)

    return Output(
        name="safetensors",
        target="safetensors",
        derived=derived,
        encoder=encoder,
        config=config,
        notes=lambda _: (_NOTE,),
    )


def _stored_shape(scheme: Scheme, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the scales: `[out, groups of a row]`, or one number per chunk of rows or of the flat tensor."""
    shape_of_scales = scheme.scale_shape(shape)
    return shape_of_scales[:2] if isinstance(scheme, ZeroInference) else shape_of_scales


def scale_param(scheme: Scheme, shape: tuple[int, ...]) -> str:
    """Under which name a weight's scales are stored: one of `SCALE` and `CHUNKS`."""
    numel = scheme.group_numel(shape)
    is_whole = numel % shape[1] == 0 and shape[0] * shape[1] % numel == 0
    return CHUNKS if isinstance(scheme, Moq) and not is_whole else SCALE


def _derived(name: str, tensor: LogicalTensor, scheme: Scheme) -> dict[str, LogicalTensor]:
    module = name.removesuffix(".weight")
    # What DeepSpeed computes in float32 stays so; the others keep scales in the weights' dtype.
    kind = "float32" if isinstance(scheme, Moq | Rows | Groups) else tensor.dtype
    scales = LogicalTensor(dtype=kind, shape=_stored_shape(scheme, tensor.shape))
    codes = "int8" if scheme.is_symmetric else "uint8"
    scale = f"{module}.{scale_param(scheme, tensor.shape)}"
    stored = {name: LogicalTensor(dtype=codes, shape=tensor.shape), scale: scales}
    return stored if scheme.is_symmetric else stored | {f"{module}.{MINIMUM}": scales}


def _encoder(name: str, tensor: LogicalTensor, scheme: Scheme, *, allow_nonfinite: bool) -> Encoder:
    if isinstance(scheme, Moq | Rows):
        formula: Any = moq if isinstance(scheme, Moq) else rows
        keep: Callable[[Any], NDArray[Any]] = moq.kept if isinstance(scheme, Moq) else np.asarray
        numel = scheme.group_numel(tensor.shape)
        scale = f"{name.removesuffix('.weight')}.{scale_param(scheme, tensor.shape)}"

        def part(block: blocks.Block, scales: Any, first: int) -> NDArray[np.int8]:
            codes: NDArray[np.int8] = formula.encode_part(block, scales, group_numel=numel, first=first)
            return codes

        return FlatEncoder(
            name, tensor, numel, formula.scale, part, lambda s: keep(s).reshape(-1), scale,
            allow_nonfinite=allow_nonfinite,
        )  # fmt: skip

    def encode(box: Box, block: blocks.Block) -> Iterable[Encoded]:
        return _strips(name, box, _encode(scheme, block))

    return RowEncoder(name, tensor.dtype, encode, allow_nonfinite=allow_nonfinite)


def _encode(scheme: Scheme, block: blocks.Block) -> blocks.Encoded:
    match scheme:
        case Groups():
            return rows.encode(block, group_numel=scheme.group_numel(block.shape))
        case Symmetric():
            return symmetric.encode(block, group_size=scheme.group_size)
        case SymmetricSearch():
            return search.encode(block, group_size=scheme.group_size)
        case ZeroInference():
            return zero_inference.encode(block, group_size=scheme.group_size)
        case _:
            raise UnsupportedTargetError(f"the scheme {scheme.name} is not encoded by rows")


def _strips(name: str, box: Box, encoded: blocks.Encoded) -> Iterable[Encoded]:
    module = name.removesuffix(".weight")
    yield name, box, encoded.codes
    height = box[0][1] - box[0][0]
    for table, kept in ((SCALE, encoded.scales), (MINIMUM, encoded.minimum)):
        if kept is not None:
            flat = kept.reshape(height, -1)
            yield f"{module}.{table}", (box[0], (0, flat.shape[1])), flat


def _config(decisions: Mapping[str, Decision], scheme: Scheme) -> dict[str, Any]:
    size = getattr(scheme, "group_size", None)
    weights = {"num_bits": 8, "type": "int", "symmetric": scheme.is_symmetric, "group_size": size}
    modules = [d.module for d in decisions.values() if d.is_quantized]
    return {
        "quant_method": METHOD,
        "scheme": msgspec.to_builtins(scheme),
        "config_groups": {"group_0": {"targets": modules, "weights": weights}},
    }
