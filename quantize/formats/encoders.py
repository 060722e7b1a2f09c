"""Shared by the encoders of all formats: strips as blocks of weights, and errors that name the tensor."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reshard.encoding import Encoded
from reshard.layout import Box
from reshard.tensors import LogicalTensor

from ..errors import NonfiniteWeightError, QuantizeError, ScaleOverflowError
from ..groups import blocks

#: The bits of an exponent that say "not a number, or infinite".
_EXPONENT: Final = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}

#: A strip's box and its weights → strips of derived tensors.
Encode = Callable[[Box, blocks.Block], Iterable[Encoded]]


class RowEncoder:
    """Encodes whole rows in one pass."""

    rows: int = 1
    is_two_pass: bool = False

    def __init__(self, name: str, dtype: str, encode: Encode, *, allow_nonfinite: bool) -> None:
        """Prepare for one tensor.

        Args:
            name: the tensor's, for messages.
            dtype: torch's name of its dtype.
            encode: the format's.
            allow_nonfinite: take NaN and infinities for zero instead of refusing them.
        """
        self._name, self._dtype, self._encode = name, dtype, encode
        self._allow_nonfinite = allow_nonfinite

    def observe(self, box: Box, values: NDArray[Any]) -> None:
        """Nothing is needed beforehand."""

    def encode(self, box: Box, values: NDArray[Any]) -> Iterable[Encoded]:
        """Encode a strip.

        Raises:
            QuantizeError: it holds NaN or an infinity; the message names the tensor and the place.
        """
        with named(self._name, box):
            return list(self._encode(box, as_block(values, self._dtype, self._allow_nonfinite)))


class FlatEncoder:
    """Encodes chunks of the flattened tensor, which may end inside rows: scales first, then codes."""

    rows: int = 1
    is_two_pass: bool = True

    def __init__(
        self,
        name: str,
        tensor: LogicalTensor,
        group_numel: int,
        scale: Callable[[blocks.Floats], blocks.Floats],
        encode: Callable[[blocks.Block, blocks.Floats, int], NDArray[np.int8]],
        keep: Callable[[blocks.Floats], NDArray[np.float32]],
        scale_name: str,
        *,
        allow_nonfinite: bool,
    ) -> None:
        """Prepare for one tensor.

        Args:
            name: the tensor's; its codes take its place.
            tensor: its dtype and shape.
            group_numel: weights per chunk.
            scale: from the largest absolute value of every chunk to what `encode` takes.
            encode: a block, the chunks' scales and where in the flat tensor the block begins → codes.
            keep: from those scales to what is stored.
            scale_name: under which name.
            allow_nonfinite: take NaN and infinities for zero instead of refusing them.
        """
        self._name, self._tensor, self._numel = name, tensor, group_numel
        self._scale, self._encode, self._keep, self._scale_name = scale, encode, keep, scale_name
        self._allow_nonfinite = allow_nonfinite
        count = -(-tensor.shape[0] * tensor.shape[1] // group_numel)
        self._largest = np.zeros(count, np.float32)
        self._scales: blocks.Floats | None = None

    def observe(self, box: Box, values: NDArray[Any]) -> None:
        """Note the largest weights of the strip's chunks.

        Raises:
            QuantizeError: it holds NaN or an infinity; the message names the tensor and the place.
        """
        with named(self._name, box):
            block = as_block(values, self._tensor.dtype, self._allow_nonfinite)
            blocks.observe(block, self._numel, self._largest, box[0][0] * self._tensor.shape[1])

    def encode(self, box: Box, values: NDArray[Any]) -> Iterable[Encoded]:
        """Encode a strip; the scales of the whole tensor come with the first one.

        Raises:
            QuantizeError: a chunk whose scale no float holds.
        """
        block = as_block(values, self._tensor.dtype, self._allow_nonfinite)
        with named(self._name, box):
            if self._scales is None:
                self._scales = self._scale(self._largest)
                kept = self._keep(self._scales)
                yield self._scale_name, ((0, kept.size),), kept
        yield self._name, box, self._encode(block, self._scales, box[0][0] * self._tensor.shape[1])


def as_block(values: NDArray[Any], dtype: str, allow_nonfinite: bool) -> blocks.Block:
    """A strip's bits as a block of weights.

    Args:
        values: the strip, as it is stored.
        dtype: of the weights.
        allow_nonfinite: take NaN and infinities for zero.
    """
    if allow_nonfinite:
        exponent = values.dtype.type(_EXPONENT[dtype])
        values = np.where((values & exponent) == exponent, values.dtype.type(0), values)
    return blocks.view(values.reshape(-1).view(np.uint8), dtype).reshape(values.shape)


@contextmanager
def named(name: str, box: Box) -> Iterator[None]:
    """Errors of the arithmetic, which knows blocks only, as sentences that name the tensor.

    Raises:
        QuantizeError: in the place of one.
    """
    try:
        yield
    except NonfiniteWeightError as error:
        row, column = divmod(error.index, box[1][1] - box[1][0])
        raise QuantizeError(
            f"{name} is NaN or infinite at [{box[0][0] + row}, {column}], which no integer can "
            "stand for; give `allow_nonfinite` to take such weights for zero"
        ) from None
    except ScaleOverflowError as error:
        raise QuantizeError(f"{name}: {error}") from None
