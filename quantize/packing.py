"""compressed-tensors' `pack-quantized`: 4- or 8-bit codes in int32 words along the input dimension.

Bit-equal to `pack_to_int32` of compressed-tensors 0.20: code i of a row, plus 2^(bits-1), is at the bits from
`bits * i` of the row; the last word's unused bits are zero.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidSchemeError
from .groups.blocks import output
from .kernels import conversion


def packed_columns(columns: int, bits: int) -> int:
    """The int32 words in each row of `columns` codes.

    Raises:
        InvalidSchemeError: neither 4 nor 8 bits.
    """
    if bits not in (4, 8):
        raise InvalidSchemeError(f"codes of {bits} bits are not packed; choose 4 or 8")
    return -(-columns * bits // 32)


def pack(codes: NDArray[np.int8], bits: int, packed: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
    """The words int32 [rows, packed_columns] of `codes` int8 [rows, columns], in `packed` if it is given.

    Args:
        codes: int8 [rows, columns].
        bits: 4 or 8 per code.
        packed: a buffer, int32 [rows, packed_columns]; None makes one.
    """
    rows, columns = codes.shape
    words = output(packed, (rows, packed_columns(columns, bits)), np.int32)
    per_word = 32 // bits
    if columns % per_word:
        whole = np.full((rows, words.shape[1] * per_word), -(1 << bits - 1), np.int8)
        whole[:, :columns] = codes
        codes = whole
    joined = words.view(np.uint8)
    if bits == 8:
        np.bitwise_xor(codes.view(np.uint8), np.uint8(128), out=joined)
    else:
        conversion.join_nibbles(codes.reshape(-1), np.int8(8), False, joined.reshape(-1))
    return words


def unpack(packed: NDArray[np.int32], bits: int, columns: int) -> NDArray[np.int8]:
    """The codes int8 [rows, columns] in `packed` int32 [rows, packed_columns].

    Args:
        packed: int32 [rows, packed_columns].
        bits: 4 or 8 per code.
        columns: codes in each row.
    """
    joined = packed.view(np.uint8)
    if bits == 8:
        return np.ascontiguousarray(joined[:, :columns] ^ np.uint8(128)).view(np.int8)
    codes = np.empty((len(packed), 2 * joined.shape[1]), np.int8)
    conversion.split_nibbles(joined.reshape(-1), np.int8(8), False, codes.reshape(-1))
    return np.ascontiguousarray(codes[:, :columns])


def weight_shape(shape: tuple[int, ...]) -> NDArray[Any]:
    """What is stored as `weight_shape`, int64 [2]: packed words do not tell the shape of what they hold."""
    return np.array(shape, np.int64)
