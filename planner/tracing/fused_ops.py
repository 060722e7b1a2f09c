"""Replacements of operations that differ in a trace without data, and a mode that applies them.

Attention: torch selects its kernel by device, and on a device without memory it selects one that materialises
the scores. A GPU runs a fused kernel, so the trace records one operation, and the bias in the model's dtype
that the fused kernels create from a boolean mask.
Grouped products: their shape function accepts only bfloat16.
Constructors: `torch.tensor(device="cpu:3")` drops the index of the fake device.
`tolist()`: reads data in C++, where no mode can intercept it.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from planner.tracing.answers import item_answer

_LIBRARY: Final = torch.library.Library("offload_planner", "DEF")
_LIBRARY.define("attention(Tensor query, Tensor key, Tensor value, Tensor? bias) -> Tensor")
_LIBRARY.define("attention_bias(Tensor mask, Tensor query) -> Tensor")
_LIBRARY.define("grouped_product(Tensor rows, Tensor weight, Tensor? offsets) -> Tensor")


def _attention_shape(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    width = value.shape[-1]
    if query.dim() != 4:
        return query.new_empty((*query.shape[:-1], width))
    batch, heads, length, _ = query.shape
    # The fused kernels write (batch, length, heads, width), so that merging the heads afterwards is a view.
    return query.new_empty((batch, length, heads, width)).transpose(1, 2)


def _bias_shape(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    return query.new_empty(mask.shape)


def _grouped_shape(rows: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    if rows.dim() == 3 and weight.dim() == 3:
        return rows.new_empty((rows.shape[0], rows.shape[1], weight.shape[-1]))
    if rows.dim() == 2 and weight.dim() == 2 and offsets is not None:
        return rows.new_empty((offsets.shape[0], rows.shape[0], weight.shape[-1]))
    return rows.new_empty((rows.shape[0], weight.shape[-1]))


_LIBRARY.impl("attention", _attention_shape, "Meta")
_LIBRARY.impl("attention_bias", _bias_shape, "Meta")
_LIBRARY.impl("grouped_product", _grouped_shape, "Meta")

_OPS: Final = torch.ops.offload_planner
ATTENTION: Final = _OPS.attention
ATTENTION_BIAS: Final = _OPS.attention_bias
GROUPED_PRODUCT: Final = _OPS.grouped_product

_CONSTRUCTORS: Final = frozenset(
    {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor, torch.scalar_tensor}
)


def _without_data(tensor: Any) -> bool:
    return isinstance(tensor, FakeTensor) or (isinstance(tensor, torch.Tensor) and tensor.is_meta)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    bias = attn_mask
    if bias is not None and bias.dtype is torch.bool:
        bias = _OPS.attention_bias.default(bias, query)
    result: torch.Tensor = ATTENTION.default(query, key, value, bias)
    return result


def _grouped(
    rows: torch.Tensor,
    weight: torch.Tensor,
    *positional: Any,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    offsets = positional[0] if positional else offs
    result: torch.Tensor = GROUPED_PRODUCT.default(rows, weight, offsets)
    return result if bias is None else result + bias


def _listed(tensor: torch.Tensor) -> Any:
    value = item_answer(tensor)
    nested: Any = value
    for extent in reversed(tensor.shape):
        nested = [nested] * extent
    return nested


_REPLACED: Final[dict[Any, Callable[..., Any]]] = {
    torch.nn.functional.scaled_dot_product_attention: _attention,
    torch.Tensor.tolist: _listed,
}
for _name, _place in (("grouped_mm", torch.nn.functional), ("_grouped_mm", torch)):
    if hasattr(_place, _name):
        _REPLACED[getattr(_place, _name)] = _grouped


class FusedOps(TorchFunctionMode):
    """While active, replaces the functions of `_REPLACED` when an argument is a tensor without data."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACED.get(func)
        if replacement is not None and any(_without_data(a) for a in (*args, *kwargs.values())):
            return replacement(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _CONSTRUCTORS:
            return _on_asked_device(func, args, kwargs, result)
        return result


def _on_asked_device(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    device = kwargs.get("device")
    if device is None and func is torch.Tensor.new_tensor:
        device = args[0].device
    if device is None or not isinstance(result, FakeTensor) or torch.device(device) == result.device:
        return result
    result.constant = None  # with a known constant, the move would be ignored
    return result.to(device)
