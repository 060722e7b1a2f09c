"""Ids of the results of operations that only move elements: copies, and reading and writing by index."""

from typing import Any, Final

import numpy as np
import torch
from torch.utils._pytree import tree_map

from planner.tracing.partition.context import Call, Context, Result
from planner.tracing.partition.feature_sets import Ids

_aten: Final = torch.ops.aten


def _existing(*names: str) -> frozenset[Any]:
    return frozenset(getattr(_aten, name) for name in names if hasattr(_aten, name))


#: Operations that are run unchanged on the ids.
COPIES: Final = _existing(
    "cat", "stack", "repeat", "flip", "roll", "constant_pad_nd", "tril", "triu", "slice_scatter",
    "select_scatter", "repeat_interleave", "reshape", "_unsafe_view", "as_strided_copy", "unfold_copy",
    "split_with_sizes_copy", "view_copy", "rot90", "upsample_nearest1d", "pixel_shuffle", "im2col",
)  # fmt: skip
#: Operations that create tensors, with at most a shape from their arguments.
CREATIONS: Final = _existing(
    "zeros", "ones", "empty", "full", "arange", "zeros_like", "ones_like", "empty_like", "full_like",
    "new_zeros", "new_ones", "new_empty", "new_full", "scalar_tensor", "eye", "empty_strided", "rand_like",
    "randn_like", "new_empty_strided", "triu_indices", "tril_indices", "rand", "randn", "one_hot",
    "bernoulli", "histc", "bincount",
)  # fmt: skip
PICKS: Final = _existing("index", "_unsafe_index")
ALONG_ONE: Final = _existing("index_select", "gather")
PLACES: Final = _existing(
    "index_add", "index_add_", "index_copy", "index_copy_", "scatter", "scatter_", "scatter_add",
    "scatter_add_", "scatter_reduce", "scatter_reduce_", "index_put", "index_put_",
)  # fmt: skip
_DROPPED: Final = ("dtype", "device", "layout", "pin_memory", "memory_format")


def carried(call: Call) -> list[torch.Tensor]:
    """The input tensors whose values, and not only shapes or indices, are in the result."""
    if call.packet in CREATIONS:
        return []
    return call.inputs[:1] if call.packet in PICKS | ALONG_ONE else call.inputs


def copy(context: Context, call: Call) -> Result:
    """Runs the operation itself on the ids instead of the values."""
    if all(context.ids(tensor) is None for tensor in call.inputs):
        return None

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        ids = context.ids(leaf)
        return torch.zeros(leaf.shape, dtype=torch.long) if ids is None else torch.from_numpy(ids.copy())

    args, kwargs = tree_map(stand_in, (call.args, call.kwargs))
    if call.packet is _aten.constant_pad_nd:
        args = args[:2]
    moved = call.func(*args, **{key: value for key, value in kwargs.items() if key not in _DROPPED})
    return [tensor.numpy() for tensor in (moved if isinstance(moved, (tuple, list)) else [moved])]


def overwrite(context: Context, call: Call) -> Result:
    """`copy_`: the target's ids are replaced by those of the source."""
    ids = context.ids(call.args[1])
    shape = tuple(call.output.shape)
    return np.zeros(shape, dtype=np.int64) if ids is None else np.broadcast_to(ids, shape)


def pick(context: Context, call: Call) -> Result:
    """`x[i, :, j]`: exact where the indices are constants; otherwise any element may be read."""
    values, indices = call.args[0], list(call.args[1])
    _carry_rows(context, call, len(indices))
    ids = context.ids(values)
    constants = [None if index is None else _known(context, index) for index in indices]
    result: Ids | None = None
    if ids is not None:
        if any(index is not None and value is None for index, value in zip(indices, constants, strict=True)):
            dims = [place for place, index in enumerate(indices) if index is not None]
            ids = np.broadcast_to(context.sets.collapse(ids, dims), ids.shape)
            constants = [None if i is None else torch.zeros(i.shape, dtype=torch.long) for i in indices]
        picked = _aten.index.Tensor(torch.from_numpy(ids.copy()), constants)
        result = picked.numpy().reshape(tuple(call.output.shape))
    return _with_indices(context, call, indices, result)


def _known(context: Context, index: torch.Tensor) -> torch.Tensor | None:
    if not index.is_meta:
        return index
    facts = context.storages.find(index)
    if facts is None or facts.known is None or facts.known.numel() != index.numel():
        return None
    return facts.known.reshape(index.shape)


def _with_indices(
    context: Context, call: Call, indices: list[torch.Tensor | None], result: Ids | None
) -> Result:
    """Unites the result's ids with those of the indices, because it depends on them."""
    shape = tuple(call.output.shape)
    for index in indices:
        ids = context.ids(index)
        if index is None or ids is None:
            continue
        first = next(place for place, entry in enumerate(indices) if entry is not None)
        trailing = len(shape) - first - index.dim()
        spread = ids.reshape(*ids.shape, *(1,) * max(trailing, 0))
        if trailing < 0 or spread.shape[: index.dim()] != shape[first : first + index.dim()]:
            return context.blend(call)
        spread = np.broadcast_to(spread, shape)
        result = spread if result is None else context.sets.meet(result, spread)
    return result


def _carry_rows(context: Context, call: Call, num_picked: int) -> None:
    """Keeps the source of a parameter of which whole rows are read, as one expert's weight."""
    values, out = call.args[0], call.output
    for source in context.storages.sources(values):
        kept = source.axes_of(values)[num_picked:]
        if tuple(values.shape[num_picked:]) == tuple(out.shape[out.dim() - len(kept) :]):
            context.storages.derive(out, source.name, (*({},) * (out.dim() - len(kept)), *kept))


def pick_along(context: Context, call: Call) -> Result:
    """`gather` and `index_select`: any element along the dimension may be read."""
    values, index = call.args[0], call.args[2]
    ids, of_index = context.ids(values), context.ids(index)
    shape = tuple(call.output.shape)
    dim = int(call.args[1]) % max(values.dim(), 1)
    result: Ids | None = None
    if call.packet is _aten.index_select and dim == 0:
        _carry_rows(context, call, 1)
    united = None if ids is None else context.together(context.sets.collapse(ids, (dim,)))
    if united is not None:
        cut = tuple(slice(0, 1 if d == dim else extent) for d, extent in enumerate(shape))
        result = np.broadcast_to(united[cut], shape)
    if of_index is None:
        return result
    if call.packet is _aten.index_select:
        of_index = of_index.reshape(-1, *(1,) * (len(shape) - dim - 1))
    spread = np.broadcast_to(of_index, shape)
    return spread if result is None else context.sets.meet(result, spread)


def embedding(context: Context, call: Call) -> Result:
    """Rows of a table: the last dimension of the result has the columns of the table."""
    table, index = call.given["weight"], call.given["indices"]
    rank = call.output.dim()
    for source in context.storages.sources(table):
        axes = (*({},) * (rank - 1), source.axes_of(table)[1])
        context.storages.derive(call.output, source.name, axes)
    ids = context.ids(index)
    return None if ids is None else np.broadcast_to(ids[..., None], tuple(call.output.shape))


def place(context: Context, call: Call) -> Result:
    """Values written or added at indices: any row may be written, and columns stay in their place."""
    target = call.args[0]
    shape = tuple(target.shape)
    result = context.ids(target)
    result = np.zeros(shape, dtype=np.int64) if result is None else result.copy()
    for tensor in call.inputs[1:]:
        ids = context.ids(tensor)
        if ids is None:
            continue
        moved = _indexed_dims(call, tensor)
        if moved is None:
            return context.blend(call)
        spread = context.sets.collapse(ids, moved)
        if call.packet in _existing("index_put", "index_put_"):
            spread = spread.reshape(spread.shape[len(moved) :])
        result = context.sets.meet(result, np.broadcast_to(spread, shape))
    return result if result.any() else None


def _indexed_dims(call: Call, values: torch.Tensor) -> list[int] | None:
    """Dimensions of `values` along which rows are written; None where they cannot be determined."""
    if isinstance(call.args[1], int):
        return [call.args[1]] if values.dim() == call.args[0].dim() else None
    indices = call.args[1]
    if any(index is None for index in indices) or any(index is values for index in indices):
        return None
    kept = call.args[0].dim() - len(indices)
    return list(range(values.dim() - kept)) if values.dim() >= kept else None
