"""The dtypes of checkpoints: one table, no torch.

Source: the safetensors format's dtype names and torch's own names.
"""

from typing import Final

import msgspec

from .errors import UnknownDtypeError


class Dtype(msgspec.Struct, frozen=True, kw_only=True):
    """One element type.

    Attributes:
        name: torch's name without the `torch.` prefix, as in `float16`.
        safetensors: the code in a safetensors header, as in `F16`.
        itemsize_bytes: bytes of one element.
    """

    name: str
    safetensors: str
    itemsize_bytes: int


_TABLE: Final = tuple(
    Dtype(name=name, safetensors=code, itemsize_bytes=size)
    for name, code, size in (
        ("float64", "F64", 8),
        ("float32", "F32", 4),
        ("float16", "F16", 2),
        ("bfloat16", "BF16", 2),
        ("float8_e4m3fn", "F8_E4M3", 1),
        ("float8_e5m2", "F8_E5M2", 1),
        ("int64", "I64", 8),
        ("int32", "I32", 4),
        ("int16", "I16", 2),
        ("int8", "I8", 1),
        ("uint64", "U64", 8),
        ("uint32", "U32", 4),
        ("uint16", "U16", 2),
        ("uint8", "U8", 1),
        ("bool", "BOOL", 1),
        ("complex64", "C64", 8),
    )
)
_BY_NAME: Final = {d.name: d for d in _TABLE}
_BY_CODE: Final = {d.safetensors: d for d in _TABLE}
_ALIASES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16"}


def dtype(name: str) -> Dtype:
    """The dtype called `name` by torch (`float16`, `torch.float16`) or in short (`fp16`).

    Raises:
        UnknownDtypeError: the name is in no table.
    """
    plain = name.removeprefix("torch.")
    match = _BY_NAME.get(_ALIASES.get(plain, plain))
    if match is None:
        raise UnknownDtypeError(f"unknown dtype {name!r}; known are {', '.join(_BY_NAME)}")
    return match


def from_safetensors(code: str) -> Dtype:
    """The dtype whose safetensors code is `code`.

    Raises:
        UnknownDtypeError: the code is in no table.
    """
    match = _BY_CODE.get(code)
    if match is None:
        raise UnknownDtypeError(f"unknown safetensors dtype {code!r}; known are {', '.join(_BY_CODE)}")
    return match
