"""A model by layers and roles, for formats with other names or other fused weights than the checkpoint."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from reshard.architectures.schema import Architecture, Role
from reshard.errors import CannotSplitError, UnsupportedTargetError
from reshard.layout import Interval, arrange, joined, unit_interval
from reshard.rules import Rule, Rules
from reshard.tensors import Chunk, LogicalTensor, StoredTensor

#: Which module holds the units of a part, the fused one first.
_HOLDERS: Final[dict[str, tuple[Role, ...]]] = {
    "query": ("query_key_value", "query"),
    "key": ("query_key_value", "key"),
    "value": ("query_key_value", "value"),
    "gate": ("mlp_gate_up", "mlp_gate"),
    "up": ("mlp_gate_up", "mlp_up"),
}


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One block.

    Attributes:
        index: its number.
        prefix: its module's name, with the base model's prefix even where the checkpoint lacks that.
        rules: role → parameter (`weight`, `bias`) → rule.
        norms: of the role `norm`, of which a block may have several.
    """

    index: int
    prefix: str
    rules: dict[Role, dict[str, Rule]]
    norms: list[Rule]


class Layers:
    """The blocks of a decoder, and what stands outside them."""

    def __init__(self, rules: Rules) -> None:
        """Sort the model's tensors.

        Raises:
            UnsupportedTargetError: a block has two modules of one role: experts, or cross-attention.
        """
        self.rules = rules
        self.outside: dict[str, Rule] = {}
        layers: dict[int, Layer] = {}
        for name in rules.tensors:
            rule = rules.rule(name)
            if not rule.stars:
                self.outside[name] = rule
            elif rule.role != "replicated":
                _add(layers, rule, self.full_name(rule.module))
        self.layers = tuple(layers[i] for i in sorted(layers))

    def full_name(self, name: str) -> str:
        """`name` with the base model's prefix, which checkpoints of the bare model lack."""
        return full_name(self.rules.table, name)

    def tensor(self, rule: Rule) -> LogicalTensor:
        """The logical tensor of a rule."""
        return self.rules.tensors[rule.name]


def full_name(table: Architecture, name: str) -> str:
    """`name` with the base model's prefix, which checkpoints of the bare model lack."""
    is_top = any(name == top or name.startswith(top + ".") for top in table.top)
    if not table.prefix or is_top or name.startswith(table.prefix + "."):
        return name
    return f"{table.prefix}.{name}"


def _add(layers: dict[int, Layer], rule: Rule, module: str) -> None:
    if len(rule.stars) != 1 or not rule.stars[0].isdecimal():
        raise UnsupportedTargetError(f"{rule.name}: this format has no place for experts, nor for two stacks")
    index = int(rule.stars[0])
    segments = module.split(".")
    prefix = ".".join(segments[: segments.index(rule.stars[0]) + 1])
    layer = layers.setdefault(index, Layer(index=index, prefix=prefix, rules={}, norms=[]))
    if rule.role == "norm":
        layer.norms.append(rule)
        return
    params = layer.rules.setdefault(rule.role, {})
    if rule.param in params:
        raise UnsupportedTargetError(f"{rule.name}: a second {rule.role} in one block has no place here")
    params[rule.param] = rule


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one part that a rank holds."""

    part: str
    units: Interval


def fused(
    name: str, layers: Layers, layer: Layer, param: str, shares: Sequence[Share], blocks: int = 1
) -> StoredTensor | None:
    """A stored tensor whose outputs are units of several parts; None when the model has no such parameter.

    Args:
        name: the stored tensor's.
        layers: the model.
        layer: the block.
        param: `weight` or `bias`.
        shares: parts in the order in which they lie inside a block.
        blocks: how many blocks the stored tensor has.

    Raises:
        CannotSplitError: the units do not fill the blocks evenly.
    """
    pairs = [(share.part, share.units) for share in shares]
    rows = list(_rows(layer, param, arrange(pairs, blocks)))
    if not rows:
        return None
    chunks: list[Chunk] = []
    at = 0
    for rule, interval in _grouped(rows):
        chunks.append(_chunk(rule, layers.tensor(rule), interval, at))
        at += interval[1] - interval[0]
    first = layers.tensor(rows[0][0])
    inputs = () if len(first.shape) == 1 else (first.shape[0 if rows[0][0].entry.conv1d else 1],)
    return StoredTensor(name=name, dtype=first.dtype, shape=(at, *inputs), chunks=tuple(chunks))


def _rows(layer: Layer, param: str, units: Iterable[tuple[str, int]]) -> Iterator[tuple[Rule, Interval]]:
    for part, unit in units:
        rule = holder(layer, part, param)
        if rule is None or rule.outputs is None:
            continue
        axis = rule.outputs.axis
        # A module of its own has one part, which the table may call otherwise.
        name = part if len(axis.parts) > 1 else axis.parts[0].name
        yield rule, unit_interval(axis, name, unit)


def holder(layer: Layer, part: str, param: str) -> Rule | None:
    """The rule of the module that holds the units of `part`.

    Args:
        layer: the block.
        part: `query`, `key`, `value`, `gate` or `up`.
        param: `weight` or `bias`.
    """
    for role in _HOLDERS[part]:
        rule = layer.rules.get(role, {}).get(param)
        if rule is not None:
            return rule
    return None


def _grouped(rows: Iterable[tuple[Rule, Interval]]) -> Iterator[tuple[Rule, Interval]]:
    """Rows of one tensor that follow each other made one interval."""
    last: Rule | None = None
    run: list[Interval] = []
    for rule, interval in rows:
        if last is not None and rule is not last:
            yield from ((last, i) for i in joined(run))
            run = []
        last = rule
        run.append(interval)
    if last is not None:
        yield from ((last, i) for i in joined(run))


def _chunk(rule: Rule, tensor: LogicalTensor, rows: Interval, at: int) -> Chunk:
    if len(tensor.shape) == 1:
        return Chunk(tensor=rule.name, box=(rows,), at=(at,))
    if rule.entry.conv1d:
        return Chunk(tensor=rule.name, box=((0, tensor.shape[0]), rows), at=(at, 0), is_swapped=True)
    return Chunk(tensor=rule.name, box=(rows, (0, tensor.shape[1])), at=(at, 0))


def columns(name: str, layers: Layers, rule: Rule, tp_size: int, tp_rank: int) -> StoredTensor:
    """A row-parallel weight's share, `[out, in_r]` also where the family stores `[in, out]`.

    Args:
        name: the stored tensor's.
        layers: the model.
        rule: the weight's.
        tp_size: the degree.
        tp_rank: the rank, from 0 on.
    """
    tensor = layers.tensor(rule)
    assert rule.inputs is not None
    intervals = rule.inputs.intervals(rule.name, tp_size, tp_rank)
    outputs = tensor.shape[1 if rule.entry.conv1d else 0]
    chunks, at = [], 0
    for begin, end in intervals:
        box = ((begin, end), (0, outputs)) if rule.entry.conv1d else ((0, outputs), (begin, end))
        chunks.append(Chunk(tensor=rule.name, box=box, at=(0, at), is_swapped=rule.entry.conv1d))
        at += end - begin
    return StoredTensor(name=name, dtype=tensor.dtype, shape=(outputs, at), chunks=tuple(chunks))


def interleaved(
    name: str, layers: Layers, layer: Layer, param: str, shares: Sequence[Share], width: int
) -> StoredTensor | None:
    """As `fused`, but rows of the parts take turns: `[units, width, parts]`.

    Args:
        name: the stored tensor's.
        layers: the model.
        layer: the block.
        param: `weight` or `bias`.
        shares: parts in the order in which their rows take turns.
        width: rows of one unit.

    Raises:
        CannotSplitError: parts have different numbers of units.
    """
    counts = {share.units[1] - share.units[0] for share in shares}
    if len(counts) != 1:
        raise CannotSplitError(f"{name}: rows of parts take turns, so every part must have as many heads")
    begin = [share.units[0] for share in shares]
    units = [(share.part, begin[i] + u) for u in range(counts.pop()) for i, share in enumerate(shares)]
    rows = list(_rows(layer, param, units))
    if not rows:
        return None
    chunks = []
    parts = len(shares)
    for number, (rule, (first, _)) in enumerate(rows):
        unit, part = divmod(number, parts)
        for row in range(width):
            at = (unit * width + row) * parts + part
            chunks.append(_chunk(rule, layers.tensor(rule), (first + row, first + row + 1), at))
    tensor = layers.tensor(rows[0][0])
    inputs = () if len(tensor.shape) == 1 else (tensor.shape[0 if rows[0][0].entry.conv1d else 1],)
    shape = (len(rows) * width, *inputs)
    return StoredTensor(name=name, dtype=tensor.dtype, shape=shape, chunks=tuple(chunks))
