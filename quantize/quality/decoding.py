"""Encode and decode weights strip by strip, as a runtime decodes what a format stores.

Settings for decoding come from the `quantization_config`, as in a runtime: if an encoder does something that
its configuration does not contain, the measured error shows it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from reshard.encoding import Encoded, Encoder
from reshard.errors import UnsupportedTargetError
from reshard.layout import Box
from reshard.tensors import LogicalTensor

from ..formats import plain
from ..groups import absmax, blocks, row_absmax, rows, symmetric, zero_inference
from ..packing import unpack
from ..scheme import Groups, Moq, Rows, Scheme, Symmetric, SymmetricSearch, ZeroInference

#: Stored tensors by what follows the module's name, and the strip's box → its weights.
Decode = Callable[[Mapping[str, NDArray[Any]], Box], blocks.Block]


class RoundTrip:
    """A `reshard.encoding.Encoder` that encodes a strip, decodes it and gives the weights that came out."""

    def __init__(self, name: str, encoder: Encoder, decode: Decode) -> None:
        """Prepare for one tensor.

        Args:
            name: the tensor's.
            encoder: a new one of a format.
            decode: what a runtime does with what that encoder makes.
        """
        self.rows, self.is_two_pass = encoder.rows, encoder.is_two_pass
        self._name, self._encoder, self._decode = name, encoder, decode
        self._module = name.removesuffix(".weight")
        self._stored: dict[str, NDArray[Any]] = {}

    def observe(self, box: Box, values: NDArray[Any]) -> None:
        """See a strip in the first pass of two."""
        self._encoder.observe(box, values)

    def encode(self, box: Box, values: NDArray[Any]) -> Iterable[Encoded]:
        """The strip as it is decoded, with the dtype and shape of `values`.

        Raises:
            QuantizeError: it cannot be encoded.
        """
        for stored, _, array in self._encoder.encode(box, values):
            # What comes with the first strip alone, such as the scales of a whole tensor, stays.
            self._stored[stored.removeprefix(f"{self._module}.")] = array
        yield self._name, box, self._decode(self._stored, box).view(values.dtype)


def decoder(config: Mapping[str, Any] | None, name: str, tensor: LogicalTensor) -> Decode:
    """How the tensor called `name` is decoded.

    Args:
        config: the `quantization_config`.
        name: the weight's.
        tensor: its dtype, which the decoded weights have as well, and its shape.

    Raises:
        UnsupportedTargetError: a method without a decoder here.
    """
    method = (config or {}).get("quant_method")
    make = _DECODERS.get(str(method))
    if config is None or make is None:
        raise UnsupportedTargetError(
            f"{name}: no decoder for quant_method {method!r}; its error can be measured for "
            f"{', '.join(_DECODERS)}"
        )
    return make(config, tensor)


def _compressed_tensors(config: Mapping[str, Any], tensor: LogicalTensor) -> Decode:
    bits = int(config["config_groups"]["group_0"]["weights"]["num_bits"])

    def decode(stored: Mapping[str, NDArray[Any]], _: Box) -> blocks.Block:
        packed = stored.get("weight_packed")
        codes = stored["weight"] if packed is None else unpack(packed, bits, tensor.shape[1])
        return symmetric.decode(codes, stored["weight_scale"])

    return decode


def _bitsandbytes(_: Mapping[str, Any], tensor: LogicalTensor) -> Decode:
    dtype = _block_dtype(tensor)
    return lambda stored, _: row_absmax.decode(stored["weight"], stored["SCB"], dtype=dtype)


def _plain(config: Mapping[str, Any], tensor: LogicalTensor) -> Decode:
    scheme: Scheme = msgspec.convert(config["scheme"], Scheme)
    numel, dtype = scheme.group_numel(tensor.shape), _block_dtype(tensor)
    scale = plain.scale_param(scheme, tensor.shape)

    def decode(stored: Mapping[str, NDArray[Any]], box: Box) -> blocks.Block:
        codes, scales = stored["weight"], stored[scale]
        match scheme:
            case Moq() | Rows():
                return absmax.decode_part(codes, scales, numel, dtype, box[0][0] * tensor.shape[1])
            case Groups():
                # By the scales that are there: where ranks share a row, each has one of its own.
                held = codes.size // scales.size
                return rows.decode(codes, scales.reshape(-1), group_numel=held, dtype=dtype)
            case Symmetric() | SymmetricSearch():
                return symmetric.decode(codes, scales)
            case ZeroInference():
                return _decode_shifted(codes, scales, stored[plain.MINIMUM], scheme)
        raise UnsupportedTargetError(f"the plain format does not store the scheme {scheme.name}")

    return decode


_DECODERS: dict[str, Callable[[Mapping[str, Any], LogicalTensor], Decode]] = {
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
    plain.METHOD: _plain,
}


def _decode_shifted(
    codes: NDArray[Any], scales: NDArray[Any], minima: NDArray[Any], scheme: ZeroInference
) -> blocks.Block:
    height, width = codes.shape[0], codes.shape[1] * (2 if scheme.bits == 4 else 1)
    small = (height, width // scheme.group_size, 1)
    if scheme.dim == 0:
        small = (height // scheme.group_size, 1, width)
    return zero_inference.decode(
        codes, scales.reshape(small), minima.reshape(small), dim=scheme.dim, bits=scheme.bits
    )


def _block_dtype(tensor: LogicalTensor) -> np.dtype[Any]:
    return blocks.view(np.empty(0, np.uint8), tensor.dtype).dtype
