"""Ids of the results of matrix products, which create features, sum over them or combine them."""

from typing import Any, Final

import numpy as np
import torch

from planner.tracing.fused_ops import ATTENTION, ATTENTION_BIAS, GROUPED_PRODUCT
from planner.tracing.partition.context import Call, Context, Result
from planner.tracing.partition.feature_sets import Ids
from planner.tracing.partition.storages import Axis, AxisSource

_aten: Final = torch.ops.aten
#: Operation → names of its two factors.
_FACTORS: Final[dict[Any, tuple[str, str]]] = {
    _aten.mm: ("self", "mat2"),
    _aten.bmm: ("self", "mat2"),
    _aten.addmm: ("mat1", "mat2"),
    _aten.baddbmm: ("batch1", "batch2"),
    _aten.matmul: ("self", "other"),
    GROUPED_PRODUCT: ("rows", "weight"),
}
PRODUCTS: Final = frozenset(_FACTORS)
ATTENTIONS: Final = frozenset({ATTENTION})
BIASES: Final = frozenset({ATTENTION_BIAS})
_LAST: Final = -1
_BEFORE_LAST: Final = -2


def product(context: Context, call: Call) -> Result:
    """A matrix product, and the tensor that is added to it, if any."""
    first, second = (call.given[name] for name in _FACTORS[call.packet])
    added = call.given["self"] if call.packet in (_aten.addmm, _aten.baddbmm) else None
    weight = _weight_of(context, first, second)
    if weight is None:
        result = _join(context, first, second)
    elif weight is second:
        result = _weighted(context, call, weight, context.ids(first), _BEFORE_LAST)
    else:
        ids = context.ids(second)
        turned = None if ids is None else np.swapaxes(ids, _LAST, _BEFORE_LAST)
        result = _weighted(context, call, weight, turned, _LAST)
        result = None if result is None else np.swapaxes(result, _LAST, _BEFORE_LAST)
    return _with_added(context, call, added, result)


def attention(context: Context, call: Call) -> Result:
    """softmax(query·key + bias)·value. Key and value heads are repeated where there are fewer of them."""
    query, key, value, bias = (call.given[name] for name in ("query", "key", "value", "bias"))
    heads = query.shape[:-2]
    scores = np.zeros((*heads, 1, 1), dtype=np.int64)
    for ids in (context.ids(query), context.ids(key), context.ids(bias)):
        if ids is not None:
            scores = context.sets.meet(scores, _repeated(context.sets.collapse(ids, (-1, -2)), heads))
    result = np.zeros((*heads, 1, value.shape[-1]), dtype=np.int64)
    if (ids := context.ids(value)) is not None:
        # The features of a head must be on one rank only if its scores have ids too.
        over = (-1, -2) if scores.any() else (-2,)
        result = np.broadcast_to(_repeated(context.sets.collapse(ids, over), heads), result.shape)
    result = context.sets.meet(scores, result)
    if isinstance(bias, torch.Tensor) and context.ids(bias) is None:
        context.note_elementwise(bias, np.broadcast_to(scores, (*heads, *bias.shape[-2:])))
    return np.broadcast_to(result, tuple(call.output.shape))


def attention_bias(context: Context, call: Call) -> Result:
    """A mask as numbers of the queries' dtype; the values of the queries are not used."""
    return context.ids(call.given["mask"])


def _repeated(ids: Ids, heads: tuple[int, ...]) -> Ids:
    if len(heads) > 1 and ids.ndim > 2 and 1 < ids.shape[-3] < heads[-1]:
        return np.repeat(ids, heads[-1] // ids.shape[-3], axis=-3)
    return ids


def _weight_of(context: Context, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor | None:
    """Which factor is a weight: a parameter, or else a tensor derived from one, such as embeddings."""
    for factor in (second, first):
        if context.storages.itself(factor) is not None:
            return factor
    for factor in (second, first):
        if context.storages.sources(factor):
            return factor
    return None


def _join(context: Context, first: torch.Tensor, second: torch.Tensor) -> Ids | None:
    """A product of two activations: element (i, j) needs row i of the first and column j of the second."""
    rows, columns = context.ids(first), context.ids(second)
    if rows is None:
        return None if columns is None else context.sets.collapse(columns, (_BEFORE_LAST,))
    if columns is None:
        return context.sets.collapse(rows, (_LAST,))
    # Each row is multiplied with each column, so that both are one set, for each matrix of the batch.
    both = (_BEFORE_LAST, _LAST)
    return context.sets.meet(context.sets.collapse(rows, both), context.sets.collapse(columns, both))


def _weighted(
    context: Context, call: Call, weight: torch.Tensor, ids: Ids | None, summed_dim: int
) -> Ids | None:
    """A product with a weight; `ids` are those of the other factor, whose last dimension is summed over.

    Returns:
        Ids of the result, features last; None where every rank has all of it (after an all-reduce).
    """
    source = context.storages.sources(weight)[0]
    axes = source.axes_of(weight)
    made_dim = _LAST if summed_dim == _BEFORE_LAST else _BEFORE_LAST
    if weight.dim() > 2 and ids is not None and ids.ndim == weight.dim() and _is_per_block(context, ids):
        return _block_diagonal(context, source.name, axes[0], ids)
    if ids is not None and _sums_over_sets(context, source, axes[summed_dim], ids):
        context.row.add(source.name)
        context.storages.facts(call.output).summed = frozenset({source.name})
        return None
    return _made(context, source, axes[made_dim], weight.shape[made_dim])


def _is_per_block(context: Context, ids: Ids) -> bool:
    """Whether each block of a batch has features of its own, as the input of a block-diagonal weight has."""
    labels = context.sets.labels()[ids]
    per_block = [np.unique(block[block > 0]) for block in labels]
    together = np.unique(np.concatenate(per_block))
    return len(per_block) > 1 and min(map(len, per_block)) > 0 and sum(map(len, per_block)) == len(together)


def _block_diagonal(context: Context, name: str, axis: Axis, ids: Ids) -> Ids:
    """Every block of the weight is used with its own block of features."""
    blocks = context.sets.collapse(ids, range(1, ids.ndim))
    context.note(name, "elementwise", axis, blocks.reshape(len(blocks)))
    return blocks


def _sums_over_sets(context: Context, source: AxisSource, axis: Axis, ids: Ids) -> bool:
    """Unites the ids at each index of the weight; returns whether the indices have two or more sets."""
    summed = context.sets.collapse(ids, range(ids.ndim - 1)).reshape(-1)
    dims = tuple(sorted(axis))
    shape = tuple(context.shapes[source.name][dim] for dim in dims)
    whole = bool(dims) and len(summed) == len(axis[dims[0]])
    if whole:
        place = np.ravel_multi_index([axis[dim] for dim in dims], shape)
        no_ids = np.zeros(int(np.prod(shape)), dtype=np.int64)
        inputs = context.inputs.setdefault((source.name, dims), no_ids)
        context.sets.unite(inputs[place], summed)
        inputs[place] = np.where(inputs[place] > 0, inputs[place], summed)
    labels = context.sets.labels()[summed]
    may_part = whole and source.name not in context.unsplit
    if may_part and (labels > 0).all() and len(np.unique(labels)) > 1:
        context.note(source.name, "input", axis, summed)
        return True
    if len(np.unique(summed[summed > 0])) > 1:
        context.blocked.add(source.name)
    context.sets.unite_all(summed)
    return False


def _made(context: Context, source: AxisSource, axis: Axis, extent: int) -> Ids | None:
    """Ids of new features; the same part of a weight always has the same ones."""
    dims = tuple(sorted(axis))
    if not dims:
        return None
    shape = tuple(context.shapes[source.name][dim] for dim in dims)
    count = int(np.prod(shape))
    features = context.outputs.get(source.name)
    if features is None or features[0] != dims:
        features = context.outputs[source.name] = (dims, context.sets.fresh(count))
    place = np.ravel_multi_index([axis[dim] for dim in dims], shape)
    ids = features[1] + place
    forced = context.forced.get(source.name)
    if forced is not None and len(forced) == count:
        ids = np.where(forced[place], 0, ids)
    context.note(source.name, "output", axis, ids)
    assert len(ids) == extent
    return ids


def _with_added(context: Context, call: Call, added: torch.Tensor | None, result: Ids | None) -> Ids | None:
    """The bias of a product: cut like its result, or added once after an all-reduce."""
    shape = tuple(call.output.shape)
    if added is None:
        return None if result is None else np.broadcast_to(result, shape)
    summed = context.storages.facts(call.output).summed
    if summed:
        context.biases.update(source.name for source in context.storages.sources(added))
        return None
    ids = context.ids(added)
    if ids is not None:
        result = ids if result is None else context.sets.meet(np.broadcast_to(result, shape), ids)
    if result is None:
        return None
    whole = np.broadcast_to(result, shape)
    if ids is None:
        context.note_elementwise(added, whole)
    return whole
