"""What the encoders of all formats share: strips as blocks of weights, and non-finite weights by name."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reshard.encoding import Encoded
from reshard.layout import Box

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
        if self._allow_nonfinite:
            exponent = values.dtype.type(_EXPONENT[self._dtype])
            values = np.where((values & exponent) == exponent, values.dtype.type(0), values)
        block = blocks.view(values.reshape(-1).view(np.uint8), self._dtype).reshape(values.shape)
        try:
            return list(self._encode(box, block))
        except NonfiniteWeightError as error:
            row, column = divmod(error.index, values.shape[1])
            raise QuantizeError(
                f"{self._name} is NaN or infinite at [{box[0][0] + row}, {column}], which no integer can "
                "stand for; give --allow-nonfinite to take such weights for zero"
            ) from None
        except ScaleOverflowError as error:
            raise QuantizeError(f"{self._name}: {error}") from None
