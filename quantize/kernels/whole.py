"""16-bit integer arithmetic with vector instructions, inside compiled loops.

A group's weights are kept as 16 bits of its largest one. A weight times a factor, shifted right by 16, is the
weight in 64ths of a code; from there codes and errors follow exactly, in vectors twice as long as float32's.
Sums are of 32 bits, and exact as long as they do not overflow: `SUMMED` weights at a time.

Vectors are spelled out, 32 weights each, and LLVM cuts them to what the CPU has: left to itself it takes
vectors of as many weights as sums fit one register, a quarter.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic

#: Weights in a vector; arrays are padded with zeros, which are no miss, to a multiple.
LANES: Final = 32
#: Factors that share one pass over the weights.
TOGETHER: Final = 4
#: The largest weight of a group.
LARGEST: Final = 32767
#: A code's parts.
PARTS: Final = 64
#: How many products may be added: misses are below 1250 parts, weights below 2^14 and codes at most 128.
SUMMED: Final = 1024

# numba says the types of few of its functions, and a decorated one is called with other arguments.
cgutils: Final[Any] = _cgutils
_pair: Final[Any] = types.Tuple

_I32: Final = ir.IntType(32)
_F64: Final = ir.DoubleType()
_SHORTS: Final = ir.VectorType(ir.IntType(16), LANES)
_INTS: Final = ir.VectorType(_I32, LANES)
_HALF: Final = ir.VectorType(_I32, LANES // 2)
#: (builder, weights in parts, the same clamped plus a half) → two vectors to multiply.
Terms = Callable[[Any, Any, Any], tuple[Any, Any]]


def _same(kind: ir.VectorType, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _spread(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(_SHORTS, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(first, first, _same(_INTS, 0))


def _in_parts(builder: Any, weights: Any, factor: Any) -> Any:
    wide = builder.mul(builder.sext(weights, _INTS), builder.sext(factor, _INTS))
    return builder.trunc(builder.ashr(wide, _same(_INTS, 16)), _SHORTS)


def _clamped(builder: Any, parts: Any, low: Any, high: Any) -> Any:
    above = builder.select(builder.icmp_signed(">", parts, low), parts, low)
    return builder.select(builder.icmp_signed("<", above, high), above, high)


def _add_products(builder: Any, total: Any, first: Any, second: Any) -> Any:
    """`total` [LANES / 2] plus products, neighbours added: one instruction on most CPUs."""
    wide = builder.mul(builder.sext(first, _INTS), builder.sext(second, _INTS))
    even, odd = (
        builder.shuffle_vector(wide, wide, ir.Constant(_HALF, list(range(begin, LANES, 2))))
        for begin in (0, 1)
    )
    return builder.add(total, builder.add(even, odd))


def _across(builder: Any, lanes: Any) -> Any:
    kind = ir.FunctionType(_I32, [_HALF])
    name = f"llvm.vector.reduce.add.v{_HALF.count}i32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [lanes])


def _intrinsic(emitter: Callable[..., Any]) -> Any:
    return intrinsic(emitter)


class _Loop:
    """What the sums over a part of an array of weights have in common."""

    def __init__(self, context: Any, builder: Any, kinds: Any, args: Any) -> None:
        """`args`: the array, begin, end, low and high, of numba's types `kinds`."""
        self._builder = builder
        self._data = context.make_array(kinds[0])(context, builder, args[0]).data
        self._begin, self._end = args[1:3]
        self._low, self._high = (_spread(builder, value) for value in args[3:5])

    def sums(self, factors: Sequence[Any], terms: Sequence[Terms]) -> list[Any]:
        """For each factor, and for each of `terms`, the sum of the products of what it emits."""
        builder = self._builder
        spread = [_spread(builder, factor) for factor in factors]
        totals = [cgutils.alloca_once(builder, _HALF) for _ in factors for _ in terms]
        for total in totals:
            builder.store(_same(_HALF, 0), total)
        step = self._begin.type(LANES)
        with cgutils.for_range_slice(builder, self._begin, self._end, step) as (index, _):
            there = builder.bitcast(builder.gep(self._data, [index]), _SHORTS.as_pointer())
            weights = builder.load(there, align=2)
            made = [pair for factor in spread for pair in self._products(weights, factor, terms)]
            for total, (first, second) in zip(totals, made, strict=True):
                builder.store(_add_products(builder, builder.load(total), first, second), total)
        return [_across(builder, builder.load(total)) for total in totals]

    def _products(self, weights: Any, factor: Any, terms: Sequence[Terms]) -> Iterator[tuple[Any, Any]]:
        parts = _in_parts(self._builder, weights, factor)
        clamped = _clamped(self._builder, parts, self._low, self._high)
        middle = self._builder.add(clamped, _same(_SHORTS, PARTS // 2))
        for term in terms:
            yield term(self._builder, parts, middle)


def _miss(builder: Any, parts: Any, middle: Any) -> tuple[Any, Any]:
    miss = builder.sub(parts, builder.and_(middle, _same(_SHORTS, -PARTS)))
    return miss, miss


def _weight_and_code(builder: Any, parts: Any, middle: Any) -> tuple[Any, Any]:
    return parts, _code(builder, parts, middle)[0]


def _code(builder: Any, _: Any, middle: Any) -> tuple[Any, Any]:
    code = builder.ashr(middle, _same(_SHORTS, PARTS.bit_length() - 1))
    return code, code


@_intrinsic
def add_squared_misses(
    _typing: Any, weights: Any, begin: Any, end: Any, low: Any, high: Any,
    factors: Any, first: Any, last: Any, sums: Any,
) -> Any:  # fmt: skip
    """Add to `sums`, float64, for each of `factors`, int16, the squared misses of a part of `weights`, int16.

    Weights from `begin` to `end`, a multiple of `LANES` later; factors from `first` to `last`, a multiple of
    `TOGETHER` later. `low` and `high` are the extreme codes in parts.

    Args:
        _typing: numba's typing context; callers leave it out.
        weights: int16, flat.
        begin: of the part.
        end: of the part, a multiple of `LANES` behind `begin`.
        low: the least code in parts.
        high: the greatest code in parts.
        factors: int16.
        first: of the factors that are taken.
        last: the end of them, a multiple of `TOGETHER` behind `first`.
        sums: added to, float64, one for each factor.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loop = _Loop(context, builder, signature.args, args)
        given, made = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (5, 8))
        step = args[6].type(TOGETHER)
        with cgutils.for_range_slice(builder, args[6], args[7], step) as (first, _):
            there = [builder.add(first, first.type(i)) for i in range(TOGETHER)]
            some = [builder.load(builder.gep(given.data, [i])) for i in there]
            for index, total in zip(there, loop.sums(some, [_miss]), strict=True):
                slot = builder.gep(made.data, [index])
                builder.store(builder.fadd(builder.load(slot), builder.sitofp(total, _F64)), slot)
        return context.get_dummy_value()

    place, short = types.intp, types.int16
    return types.void(weights, place, place, short, short, factors, place, place, sums), emit


@_intrinsic
def code_products(_typing: Any, weights: Any, begin: Any, end: Any, low: Any, high: Any, factor: Any) -> Any:
    """The sums of weights in parts times their codes, and of squared codes, as int32; arguments as above.

    Args:
        _typing: numba's typing context; callers leave it out.
        weights: int16, flat.
        begin: of the part.
        end: of the part, a multiple of `LANES` behind `begin`.
        low: the least code in parts.
        high: the greatest code in parts.
        factor: int16.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loop = _Loop(context, builder, signature.args, args)
        found = loop.sums(args[5:6], [_weight_and_code, _code])
        return context.make_tuple(builder, signature.return_type, found)

    short = types.int16
    return _pair((types.int32, types.int32))(weights, types.intp, types.intp, short, short, short), emit
