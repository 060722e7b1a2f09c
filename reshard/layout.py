"""How one dimension of a tensor is made of parts, and which of its indices belong to which rank. Pure.

A dimension of extent n is a row of *blocks*; each block holds, in the same order, an equal share of the units
of every *part*. Examples (heads = 4, head_dim = 2, kv_heads = 2):

- `q_proj` rows: one part of 4 units, width 2; one block.
- `[q | k | v]`: three parts, one block.
- `[heads, 3, head_dim]` (BLOOM): three parts of 4 units, 4 blocks.
- `[kv, n/kv + 2, head_dim]` (Falcon): parts of 4, 2 and 2 units, 2 blocks.
- an MLP's `[gate | up]`: two parts of `intermediate` units, width 1; one block.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from .errors import CannotSplitError

#: Half-open, in elements.
Interval = tuple[int, int]
#: One interval per dimension.
Box = tuple[Interval, ...]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Equal units that a tensor-parallel cut must keep whole.

    Attributes:
        name: what the units are, as in `query`; only messages and part orders use it.
        units: how many there are in the whole tensor.
        width: elements of one unit.
        sharing: what happens when a degree is no divisor: `whole` refuses; `replicated` repeats a unit on
            several ranks where there are fewer units than ranks (KV heads); `uneven` gives the first ranks
            one unit more (features of an MLP).
    """

    name: str
    units: int
    width: int = 1
    sharing: Literal["whole", "replicated", "uneven"] = "whole"


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One dimension as blocks of parts.

    Attributes:
        parts: in the order in which they lie inside a block.
        blocks: how many blocks; a divisor of every part's units.
        scales: whether a rank has fewer blocks (one per head), or as many as the whole tensor.
    """

    parts: tuple[Part, ...]
    blocks: int = 1
    scales: bool = False

    @property
    def extent(self) -> int:
        """Elements of the whole dimension."""
        return sum(part.units * part.width for part in self.parts)


def rank_units(part: Part, tp_size: int, tp_rank: int) -> Interval:
    """Which units of `part` rank `tp_rank` holds.

    Args:
        part: the units to share out.
        tp_size: the degree.
        tp_rank: the rank, from 0 on.

    Raises:
        CannotSplitError: `tp_size` cuts a unit, or leaves a rank with none.
    """
    if part.units % tp_size == 0:
        share = part.units // tp_size
        return tp_rank * share, (tp_rank + 1) * share
    if part.sharing == "replicated" and tp_size % part.units == 0:
        unit = tp_rank * part.units // tp_size
        return unit, unit + 1
    if part.sharing == "uneven" and part.units >= tp_size:
        share, more = divmod(part.units, tp_size)
        begin = tp_rank * share + min(tp_rank, more)
        return begin, begin + share + (tp_rank < more)
    raise CannotSplitError(_advice(part, tp_size))


def _advice(part: Part, tp_size: int) -> str:
    if part.sharing == "uneven":
        works = f"degrees up to {part.units} work"
    else:
        divisors = [d for d in range(1, part.units + 1) if part.units % d == 0]
        shown = ", ".join(map(str, divisors[:12])) + (", …" if len(divisors) > 12 else "")
        more = f", and multiples of {part.units}" if part.sharing == "replicated" else ""
        works = f"degrees that work: {shown}{more}"
    return f"{part.units} {_units(part.name)} cannot be shared out over tp_size={tp_size}; {works}"


def _units(name: str) -> str:
    """What the units of the part called `name` are, for a message."""
    return f"{name} heads" if name in ("query", "key", "value") else name


def unit_interval(axis: Axis, name: str, unit: int) -> Interval:
    """Where unit number `unit` of the part called `name` lies in the whole dimension.

    Args:
        axis: the whole dimension.
        name: the part's.
        unit: its number among all units of the part.
    """
    at, block_width = 0, axis.extent // axis.blocks
    for part in axis.parts:
        per_block = part.units // axis.blocks
        if part.name == name:
            begin = unit // per_block * block_width + at + unit % per_block * part.width
            return begin, begin + part.width
        at += per_block * part.width
    raise KeyError(name)


def arrange(shares: Sequence[tuple[str, Interval]], blocks: int) -> Iterator[tuple[str, int]]:
    """The units that a rank holds, in the order of a dimension of `blocks` blocks.

    Args:
        shares: part name and the units held of it, in the order of parts inside a block.
        blocks: how many blocks the rank's own dimension has.

    Yields:
        Part name and unit number in the whole tensor.

    Raises:
        CannotSplitError: the units do not fill that many blocks evenly.
    """
    for name, (begin, end) in shares:
        if (end - begin) % blocks:
            raise CannotSplitError(
                f"{end - begin} {_units(name)} on a rank do not fill the {blocks} blocks that the model's "
                "forward expects; take a smaller degree"
            )
    for block in range(blocks):
        for name, (begin, end) in shares:
            per_block = (end - begin) // blocks
            for unit in range(begin + block * per_block, begin + (block + 1) * per_block):
                yield name, unit


def rank_blocks(axis: Axis, tp_size: int) -> int:
    """How many blocks the dimension has on one rank."""
    return max(1, axis.blocks // tp_size) if axis.scales else axis.blocks


def rank_intervals(axis: Axis, tp_size: int, tp_rank: int) -> tuple[Interval, ...]:
    """The intervals of the whole dimension that make up rank `tp_rank`'s, in the rank's own order.

    The rank's dimension has the same structure as the whole one, with fewer units.

    Args:
        axis: the whole dimension.
        tp_size: the degree.
        tp_rank: the rank, from 0 on.

    Raises:
        CannotSplitError: as `rank_units` and `arrange`.
    """
    if tp_size == 1:
        return ((0, axis.extent),)
    shares = [(part.name, rank_units(part, tp_size, tp_rank)) for part in axis.parts]
    if len(axis.parts) == 1 and axis.blocks == 1:
        (begin, end), width = shares[0][1], axis.parts[0].width
        return ((begin * width, end * width),)
    units = arrange(shares, rank_blocks(axis, tp_size))
    return tuple(joined(unit_interval(axis, name, unit) for name, unit in units))


def joined(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """The same intervals; those that follow each other without a gap are merged."""
    last: Interval | None = None
    for begin, end in intervals:
        if last is not None and last[1] == begin:
            last = last[0], end
            continue
        if last is not None:
            yield last
        last = begin, end
    if last is not None:
        yield last


def overlap(a: Box, b: Box) -> Box | None:
    """What two boxes have in common; None when that is nothing."""
    common = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return common if all(begin < end for begin, end in common) else None


def volume(box: Box) -> int:
    """Elements in the box; one for the box of a scalar."""
    product = 1
    for begin, end in box:
        product *= end - begin
    return product


def whole(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor of `shape`."""
    return tuple((0, extent) for extent in shape)


def strips(shape: Sequence[int], longest: int) -> Iterator[Box]:
    """Boxes of at most `longest` elements that tile a tensor in row-major order, each contiguous in it.

    An empty tensor has no strips; a scalar has one, of no dimensions.
    """
    if volume(whole(shape)) == 0:
        return
    inner = 1
    at = len(shape)
    while at > 0 and inner * shape[at - 1] <= longest:
        at -= 1
        inner *= shape[at]
    if at == 0:
        yield whole(shape)
        return
    step = max(1, longest // inner)
    tail = whole(shape[at:])
    for outer in _indices(shape[: at - 1]):
        head = tuple((i, i + 1) for i in outer)
        for begin in range(0, shape[at - 1], step):
            yield (*head, (begin, min(begin + step, shape[at - 1])), *tail)


def aligned_strips(shape: Sequence[int], longest: int, bounds: Iterable[int]) -> Iterator[Box]:
    """As `strips`, but a strip ends at one of `bounds` of the first dimension wherever that is possible.

    Args:
        shape: the tensor's dimensions.
        longest: elements of a strip at most, unless one row has more.
        bounds: indices of the first dimension.
    """
    rows = shape[0]
    per_row = volume(whole(shape[1:]))
    ends = sorted({b for b in bounds if 0 < b < rows} | {rows})
    begin = 0
    while begin < rows and per_row:
        reach = begin + longest // per_row
        end = max((e for e in ends if begin < e <= reach), default=min(max(reach, begin + 1), rows))
        for (low, high), *rest in strips((end - begin, *shape[1:]), longest):
            yield ((begin + low, begin + high), *rest)
        begin = end


def _indices(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    if not shape:
        yield ()
        return
    for index in range(shape[0]):
        for rest in _indices(shape[1:]):
            yield (index, *rest)
