"""Floating-point operations of one aten call: 2 for a multiply-add of a product, 0 for other operations."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.utils.flop_counter import flop_registry

from planner.tracing.fused_ops import ATTENTION, GROUPED_PRODUCT

_aten: Final = torch.ops.aten


def _product(left: int) -> Callable[[tuple[Any, ...], Any], int]:
    """A matrix product whose left operand is argument `left`: 2 · elements of the result · inner size."""

    def count(args: tuple[Any, ...], out: Any) -> int:
        return 2 * int(out.numel()) * int(args[left].shape[-1])

    return count


def _attention(args: tuple[Any, ...], out: Any) -> int:
    """Both products over all positions: fused kernels compute about as much as without a causal mask."""
    query, key, value = args[:3]
    rows = query.numel() // query.shape[-1]
    return int(2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _outer(args: tuple[Any, ...], out: Any) -> int:
    return 2 * int(out.numel())


_OWN: Final[dict[Any, Callable[[tuple[Any, ...], Any], int]]] = {
    _aten.mm: _product(0),
    _aten.bmm: _product(0),
    _aten.addmm: _product(1),
    _aten.baddbmm: _product(1),
    _aten.mv: _product(0),
    _aten.addmv: _product(1),
    _aten.dot: lambda args, out: 2 * int(args[0].numel()),
    ATTENTION: _attention,
    GROUPED_PRODUCT: _product(0),
}
for _namespace, _name in (("transformers", "grouped_mm_fallback"),):
    if hasattr(getattr(torch.ops, _namespace), _name):
        _OWN[getattr(getattr(torch.ops, _namespace), _name)] = _product(0)


def flops_of(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """FLOPs of one operation.

    Args:
        packet: the aten operation.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: its result.
    """
    own = _OWN.get(packet)
    if own is not None:
        return own(args, out)
    registered = flop_registry.get(packet)
    if registered is not None:
        return int(registered(*args, **kwargs, out_val=out))
    return 0
