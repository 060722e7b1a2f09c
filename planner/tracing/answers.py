"""Results of data-dependent operations in a forward without data.

Prompts are assumed to be unpadded and masks to be true everywhere, so `all()` is true and `any()`, which
models use to detect exceptions, is false. A count is 1, and a selection by a mask selects everything.
"""

from typing import Any, Final

import torch

_aten: Final = torch.ops.aten
_TRUTH: Final = "_planner_truth"

_ALWAYS: Final = {
    _aten._is_all_true: True,
    _aten.all: True,
    _aten._is_any_true: False,
    _aten.any: False,
}
_SAME: Final = frozenset({_aten.eq, _aten.clone, _aten._to_copy, _aten.view, _aten.squeeze, _aten.alias})
_OPPOSITE: Final = frozenset({_aten.logical_not, _aten.bitwise_not})


def item_answer(tensor: torch.Tensor) -> bool | int | float:
    """The assumed value of an element of `tensor` that the forward reads."""
    truth = getattr(tensor, _TRUTH, None)
    if tensor.dtype is torch.bool:
        return bool(truth)
    if truth is not None:  # a sum of booleans: all are assumed to be counted
        return 1 if truth else 0
    return 0.0 if tensor.is_floating_point() else 1


def note_truth(packet: Any, args: tuple[Any, ...], out: Any) -> None:
    """Marks the result of an operation with the value that a later `item()` of it returns.

    Args:
        packet: the aten operation.
        args: its positional arguments.
        out: its result; marked only when it is a tensor whose assumed truth is known.
    """
    if not isinstance(out, torch.Tensor):
        return
    truth: bool | None = None
    if packet in _ALWAYS:
        truth = _ALWAYS[packet]
    elif packet in _SAME:
        truth = getattr(args[0], _TRUTH, None)
    elif packet in _OPPOSITE:
        known = getattr(args[0], _TRUTH, None)
        truth = None if known is None else not known
    elif packet is _aten.sum and args[0].dtype in (torch.bool, torch.long) and args[0].dim() > 0:
        truth = True
    if truth is not None:
        setattr(out, _TRUTH, truth)


def data_answer(packet: Any, args: tuple[Any, ...]) -> tuple[bool, Any]:
    """`(True, result)` for an operation whose result depends on data, else `(False, None)`."""
    if packet is _aten._local_scalar_dense:
        return True, item_answer(args[0])
    if packet is _aten.nonzero:
        mask = args[0]
        return True, torch.zeros(mask.numel(), mask.dim(), dtype=torch.long, device=mask.device)
    return False, None


def selecting_everything(packet: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """`args` with boolean masks replaced by indices of all elements, and split sizes that fit the tensor."""
    if packet is _aten.index and any(_is_mask(i) for i in args[1]):
        return (args[0], _as_indices(args[1]), *args[2:])
    if packet in (_aten.split_with_sizes, _aten.split_with_sizes_copy):
        dim = args[2] if len(args) > 2 else 0
        extent = args[0].shape[dim]
        sizes = list(args[1])
        if sizes and sum(sizes) != extent:  # the sizes came from data: divide the rows evenly
            share, rest = divmod(extent, len(sizes))
            sizes = [share + (i < rest) for i in range(len(sizes))]
            return (args[0], sizes, *args[2:])
    return args


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype is torch.bool


def _as_indices(indices: Any) -> list[Any]:
    result: list[Any] = []
    for index in indices:
        if not _is_mask(index):
            result.append(index)
            continue
        zeros = torch.zeros(index.numel(), dtype=torch.long, device=index.device)
        result.extend([zeros] * index.dim())
    return result
