"""Floats of three dtypes inside compiled loops, as raw bits.

An array's dtype says what its bits are: uint32 for float32, int16 for float16 and uint16 for bfloat16, so
numba compiles a loop for each of them by itself. float16 takes the CPU's own instructions where there are.

numba's cache does not look here: after a change in this file, change the loops' modules as well.
"""

import platform
from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_F32: Final = np.float32
_U32: Final = np.uint32


def _intrinsic(emitter: Callable[..., Any]) -> Any:
    return intrinsic(emitter)


def _converts_halves() -> bool:
    """Whether this CPU has instructions for float16; else LLVM would call functions that are not there."""
    if numba.config.CPU_NAME is not None:  # type: ignore[attr-defined]
        return False  # Compiling for another CPU than this one.
    x86 = bool(llvm.get_host_cpu_features().get("f16c"))
    return x86 or platform.machine() in ("aarch64", "arm64")


_CONVERTS_HALVES: Final = _converts_halves()


def _reinterpretation(given: Any, made: Any) -> Any:
    def bitcast(_typing: Any, _value: Any) -> Any:
        def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(made))

        return made(given), emit

    return _intrinsic(bitcast)


_to_float: Final = _reinterpretation(types.uint32, types.float32)
_to_bits: Final = _reinterpretation(types.float32, types.uint32)


def widen_half(bits: Any) -> Any:
    """The float32 of a float16's bits, on a CPU that cannot convert them itself."""
    unsigned = _U32(np.uint16(bits))
    magnitude = unsigned & _U32(0x7FFF)
    normal = _to_float((magnitude << _U32(13)) + _U32(112 << 23))
    subnormal = _F32(np.int32(magnitude)) * _F32(2.0**-24)
    value = subnormal if magnitude < _U32(0x0400) else normal
    value = value if magnitude < _U32(0x7C00) else _to_float(_U32(0x7F800000) | magnitude << _U32(13))
    return _to_float(_to_bits(value) | ((unsigned & _U32(0x8000)) << _U32(16)))


def round_to_half(value: Any) -> Any:
    """The float16 nearest to a float32, ties to even, as float32, on a CPU without instructions for it."""
    bits = _to_bits(value)
    magnitude = bits & _U32(0x7FFFFFFF)
    # Just under half of the 13 bits that go, and one more where the last that stays is odd, carry as needed.
    normal = (magnitude + _U32(0x0FFF) + ((magnitude >> _U32(13)) & _U32(1))) & _U32(0xFFFFE000)
    normal = normal if normal < _U32(0x47800000) else _U32(0x7F800000)
    # Near 0.5 a float32's last place is 2^-24, which is the step of float16's subnormals.
    subnormal = _to_bits((_to_float(magnitude) + _F32(0.5)) - _F32(0.5))
    nearest = subnormal if magnitude < _U32(0x38800000) else normal
    found = nearest if magnitude <= _U32(0x7F800000) else magnitude
    return _to_float(found | (bits & _U32(0x80000000)))


def round_to_bfloat16(value: Any) -> Any:
    """The bfloat16 nearest to a float32, ties to even, as float32; a NaN that arithmetic made stays one."""
    bits = _to_bits(value)
    return _to_float((bits + _U32(0x7FFF) + ((bits >> _U32(16)) & _U32(1))) & _U32(0xFFFF0000))


@_intrinsic
def widened(_typing: Any, bits: Any) -> Any:
    """The float32 of raw bits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if bits == types.uint32:
            return builder.bitcast(args[0], ir.FloatType())
        if bits == types.uint16:
            wide = builder.zext(args[0], ir.IntType(32))
            return builder.bitcast(builder.shl(wide, ir.IntType(32)(16)), ir.FloatType())
        if _CONVERTS_HALVES:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())
        return context.compile_internal(builder, widen_half, signature, args)

    return types.float32(bits), emit


@_intrinsic
def rounded(_typing: Any, value: Any, like: Any) -> Any:
    """A float32 rounded to the dtype of the raw bits `like`, ties to even, as float32.

    Args:
        _typing: numba's typing context; callers leave it out.
        value: float32.
        like: raw bits whose dtype is rounded to.
    """

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if like == types.uint32:
            return args[0]
        if like == types.int16 and _CONVERTS_HALVES:
            return builder.fpext(builder.fptrunc(args[0], ir.HalfType()), ir.FloatType())
        nearest = round_to_bfloat16 if like == types.uint16 else round_to_half
        return context.compile_internal(builder, nearest, types.float32(types.float32), args[:1])

    return types.float32(value, like), emit


@_intrinsic
def narrowed(_typing: Any, value: Any, like: Any) -> Any:
    """The raw bits, of the dtype of `like`, of a float32 that `rounded` has rounded to it.

    Args:
        _typing: numba's typing context; callers leave it out.
        value: float32, rounded already.
        like: raw bits of the dtype that is made.
    """

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = builder.bitcast(args[0], ir.IntType(32))
        if like == types.uint32:
            return wide
        if like == types.uint16:
            return builder.trunc(builder.lshr(wide, ir.IntType(32)(16)), ir.IntType(16))
        if _CONVERTS_HALVES:
            return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))
        return context.compile_internal(builder, half_bits, types.int16(types.float32), args[:1])

    return like(value, like), emit


def half_bits(value: Any) -> Any:
    """The bits of a float32 that is a float16's value, on a CPU that cannot convert them itself."""
    bits = _to_bits(value)
    magnitude = bits & _U32(0x7FFFFFFF)
    normal = (magnitude - _U32(112 << 23)) >> _U32(13)
    normal = normal if magnitude < _U32(0x47800000) else _U32(0x7C00)
    subnormal = _to_bits(_to_float(magnitude) + _F32(0.5)) - _U32(0x3F000000)
    found = subnormal if magnitude < _U32(0x38800000) else normal
    return np.int16(np.uint16(found | ((bits >> _U32(16)) & _U32(0x8000))))


@_intrinsic
def magnitude(_typing: Any, bits: Any) -> Any:
    """Raw bits without their sign, as the same integer type: they sort as the absolute values do."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        width = args[0].type.width
        return builder.and_(args[0], args[0].type((1 << width - 1) - 1))

    return bits(bits), emit


@_intrinsic
def sortable(_typing: Any, bits: Any) -> Any:
    """Raw bits as a signed integer that sorts as the values do; its own inverse. -0 comes before 0."""
    made = types.int32 if bits == types.uint32 else types.int16

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = args[0].type
        sign = builder.ashr(args[0], kind(kind.width - 1))
        return builder.xor(args[0], builder.and_(sign, kind((1 << kind.width - 1) - 1)))

    return made(bits), emit


@_intrinsic
def bits_of_sortable(_typing: Any, value: Any, like: Any) -> Any:
    """The raw bits, of the dtype of `like`, of an integer that `sortable` made, however wide it is by now.

    Args:
        _typing: numba's typing context; callers leave it out.
        value: made by `sortable`.
        like: raw bits of the dtype that is made.
    """

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = args[1].type
        same = args[0] if args[0].type == kind else builder.trunc(args[0], kind)
        sign = builder.ashr(same, kind(kind.width - 1))
        return builder.xor(same, builder.and_(sign, kind((1 << kind.width - 1) - 1)))

    return like(value, like), emit
