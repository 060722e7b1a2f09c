"""Ids of the results of elementwise operations, reductions, norms and convolutions."""

from typing import Any, Final

import numpy as np
import torch

from planner.tracing.partition.context import Call, Context, Result
from planner.tracing.partition.feature_sets import Ids
from planner.tracing.partition.storages import Axis

_aten: Final = torch.ops.aten
#: Elementwise operations that torch does not tag as such.
_UNTAGGED: Final = frozenset(
    {_aten.masked_fill, _aten.masked_fill_, _aten.dropout, _aten.native_dropout, _aten.glu, _aten.polar}
    | {
        _aten.complex,
        _aten.lerp,
        _aten._conj,
        _aten._conj_physical,
        _aten.log_sigmoid_forward,
        _aten.floor_divide,
    }
)
_CASTS: Final = frozenset(
    {_aten._to_copy, _aten.to, _aten.clone, _aten.contiguous, _aten.detach, _aten.alias}
)
_ADDITIONS: Final = frozenset({_aten.add, _aten.add_})
#: They keep the dimension; each element of the result depends on all elements along it.
_ALONG: Final = frozenset(
    {_aten._softmax, _aten._log_softmax, _aten._safe_softmax, _aten.softmax, _aten.log_softmax, _aten.cumsum}
    | {_aten.cumprod, _aten.logcumsumexp, _aten.cummax, _aten.cummin, _aten.sort, _aten.topk, _aten.argsort}
    | {_aten.cumsum_}
)
_OVER: Final = frozenset(
    {_aten.sum, _aten.mean, _aten.amax, _aten.amin, _aten.max, _aten.min, _aten.var, _aten.std, _aten.prod}
    | {_aten.var_mean, _aten.logsumexp, _aten.norm, _aten.linalg_vector_norm, _aten.any, _aten.all}
    | {_aten.argmax, _aten.argmin, _aten.median, _aten.kthvalue}
)
REDUCTIONS: Final = _ALONG | _OVER
NORMS: Final = frozenset({_aten.native_layer_norm, _aten._fused_rms_norm})
CONVOLUTIONS: Final = frozenset({_aten.convolution})


def is_elementwise(func: Any, packet: Any) -> bool:
    """Whether each element of the result depends only on the elements at its position."""
    return torch.Tag.pointwise in func.tags or packet in _UNTAGGED or packet in _CASTS


def elementwise(context: Context, call: Call) -> Result:
    """Unites the ids at each position; records inputs without ids that are combined with features."""
    shape = tuple(call.output.shape)
    result: Ids = np.zeros(shape, dtype=np.int64)
    ids_of_inputs = [(tensor, context.ids(tensor)) for tensor in call.inputs]
    for _, ids in ids_of_inputs:
        if ids is not None:
            result = context.sets.meet(result, np.broadcast_to(ids, shape))
    if result.any():
        for tensor, ids in ids_of_inputs:
            if ids is None:
                context.note_elementwise(tensor, result)
        return [result if tuple(out.shape) == shape else None for out in call.outputs]
    _carry_sources(context, call)
    return None


def _carry_sources(context: Context, call: Call) -> None:
    """Keeps the parameter sources, whose layout does not change, and partial sums; records biases."""
    summed: frozenset[str] = frozenset().union(
        *(facts.summed for t in call.inputs if (facts := context.storages.find(t)) is not None)
    )
    if summed and (call.packet in _ADDITIONS or call.packet in _CASTS):
        for tensor in call.inputs:
            added = [s.name for s in context.storages.sources(tensor)]
            owners = {name.rpartition(".")[0] for name in summed}
            context.biases.update(name for name in added if name.rpartition(".")[0] in owners)
        if call.packet in _CASTS:
            context.storages.facts(call.output).summed = summed
    if call.is_in_place or any(context.storages.is_data(tensor) for tensor in call.inputs):
        return
    rank = call.output.dim()
    for tensor in call.inputs:
        for source in context.storages.sources(tensor):
            axes: tuple[Axis, ...] = (*({},) * (rank - tensor.dim()), *source.axes_of(tensor))
            context.storages.derive(call.output, source.name, axes)


def reduction(context: Context, call: Call) -> Result:
    """Sums, maxima, softmax, sorting: unites the ids along the dimensions."""
    values = call.inputs[0]
    ids = context.ids(values)
    if ids is None:
        return None
    dims = _dims(call, values.dim())
    united = context.together(context.sets.collapse(ids, dims))
    if united is None:
        return None
    squeezed = np.squeeze(united, tuple(dim % ids.ndim for dim in dims)) if dims and ids.ndim else united
    results: list[Ids | None] = []
    for out in call.outputs:
        of_output = united if out.dim() == ids.ndim else squeezed
        results.append(np.broadcast_to(of_output, tuple(out.shape)))
    return results


def _dims(call: Call, rank: int) -> list[int]:
    dims = call.given.get("dim")
    if isinstance(dims, int) and not isinstance(dims, bool):
        return [dims]
    if isinstance(dims, (list, tuple)) and dims:
        return [int(dim) for dim in dims]
    if call.packet in _ALONG and dims is None:
        return [-1]
    return list(range(rank))


def norm(context: Context, call: Call) -> Result:
    """LayerNorm and RMSNorm."""
    ids = context.ids(call.inputs[0])
    if ids is None:
        return None
    dims = range(-len(call.given["normalized_shape"]), 0)
    united = context.together(context.sets.collapse(ids, dims))
    if united is None:
        return None
    result = np.broadcast_to(united, ids.shape)
    for name in ("weight", "bias"):
        if isinstance(call.given.get(name), torch.Tensor):
            context.note_elementwise(call.given[name], result)
    return [result, *(None for _ in call.outputs[1:])]


def group_norm(context: Context, call: Call) -> Result:
    """Norms over groups of channels."""
    ids = context.ids(call.inputs[0])
    if ids is None:
        return None
    groups = int(call.given["group"])
    grouped = ids.reshape(ids.shape[0], groups, -1)
    result = np.broadcast_to(context.sets.collapse(grouped, (-1,)), grouped.shape).reshape(ids.shape)
    for name in ("weight", "bias"):
        parameter = call.given.get(name)
        if isinstance(parameter, torch.Tensor):
            context.note_elementwise(parameter, np.moveaxis(result, 1, -1))
    return [result, *(None for _ in call.outputs[1:])]


def convolution(context: Context, call: Call) -> Result:
    """A convolution in groups of channels: outputs of a group depend on all inputs of that group."""
    ids = context.ids(call.inputs[0])
    if ids is None:
        return None
    groups, channels = int(call.given["groups"]), call.output.shape[1]
    over_space = context.sets.collapse(ids, range(2, ids.ndim))
    batch = ids.shape[0]
    per_group = context.sets.collapse(over_space.reshape(batch, groups, -1), (-1,))
    of_channels = np.repeat(per_group, channels // groups, axis=2).reshape(batch, channels)
    for name in ("weight", "bias"):
        parameter = call.given.get(name)
        if isinstance(parameter, torch.Tensor):
            _note_channels(context, parameter, of_channels)
    space = (1,) * (call.output.dim() - 2)
    return np.broadcast_to(of_channels.reshape(batch, channels, *space), tuple(call.output.shape))


def _note_channels(context: Context, parameter: torch.Tensor, of_channels: Ids) -> None:
    for source in context.storages.sources(parameter):
        axis = source.axes_of(parameter)[0]
        if axis:
            context.note(source.name, "elementwise", axis, of_channels.T)
