"""Runs a forward with an id for every feature, and records the features that each parameter is used with."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from planner.tracing.forwards import ForwardTracer, OutputSpec, Replay
from planner.tracing.layers import Layer
from planner.tracing.partition import elementwise, moves, products
from planner.tracing.partition.context import Call, Context, Result, call_of
from planner.tracing.partition.feature_sets import FeatureSets
from planner.tracing.partition.storages import Storages

_aten: Final = torch.ops.aten
_SMALL: Final = 1024
_COPIES: Final = frozenset({_aten._to_copy, _aten.copy_, _aten.lift_fresh})


class PartitionTracer(ForwardTracer):
    """Traces a model on the meta device.

    Attributes:
        context: the ids and the records of the forward.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, Layer],
        forced: Mapping[str, npt.NDArray[np.bool_]] | None = None,
        unsplit: frozenset[str] = frozenset(),
    ) -> None:
        """Create a tracer for one forward.

        Args:
            model: from `planner.tracing.meta_model.build`.
            layers: its equal layers; empty to run every layer.
            forced: parameter → mask of its outputs that every rank holds; None for none.
            unsplit: weights whose inputs stay on one rank.
        """
        super().__init__(model, layers)
        self.context = Context(
            sets=FeatureSets(),
            storages=Storages(model),
            module=lambda: self.current,
            shapes={name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)},
            forced=forced or {},
            unsplit=unsplit,
        )

    def run(self, inputs: dict[str, Any]) -> Any:
        """One forward of the whole model; returns its output."""
        with _ListedIndices():
            return super().run(inputs)

    def label(self, tensor: torch.Tensor) -> Any:
        """Ids of a tensor, and whether it depends on an activation."""
        ids = self.context.ids(tensor)
        return None if ids is None else ids.copy(), self.context.storages.is_data(tensor)

    def make_output(self, spec: OutputSpec, replay: Replay) -> torch.Tensor:
        """A replayed layer's result has the ids of the layer that was run."""
        tensor = super().make_output(spec, replay)
        ids, is_data = spec.label
        self.context.storages.set_ids(tensor, ids)
        self.context.storages.facts(tensor).is_data = is_data
        return tensor

    def on_op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `planner.tracing.forwards.ForwardTracer.on_op`; computes the ids of the results."""
        out = func(*args, **kwargs)
        call = call_of(func, args, kwargs, out)
        if call.inputs and call.outputs:
            self._flow(call)
        return out

    def _flow(self, call: Call) -> None:
        storages = self.context.storages
        if call.packet is _aten.view_as_complex:
            ids = self.context.ids(call.inputs[0])
            if ids is not None:
                self.context.sets.collapse(ids, (-1,))
        if not call.is_in_place and _is_view(call):
            return
        self._remember_constant(call)
        result = self._result(call)
        is_data = any(storages.is_data(tensor) for tensor in moves.carried(call))
        results = result if isinstance(result, list) else [result]
        for tensor, ids in zip(call.outputs, results, strict=False):
            if ids is not None or not call.is_in_place:
                storages.set_ids(tensor, ids)
        for tensor in call.outputs:
            if is_data or call.packet in products.PRODUCTS | products.ATTENTIONS:
                storages.facts(tensor).is_data = True

    def _result(self, call: Call) -> Result:
        try:
            return self._rule(call)
        except (ValueError, IndexError, RuntimeError, TypeError, KeyError) as error:
            # A shape that the rule does not handle: uniting all ids is always correct.
            self._note_unknown(f"{call.packet}: {type(error).__name__}")
            return self.context.blend(call)

    def _rule(self, call: Call) -> Result:
        rule = _RULES.get(call.packet)
        if rule is not None:
            result: Result = rule(self.context, call)
            return result
        if call.packet in moves.CREATIONS:
            return None
        if elementwise.is_elementwise(call.func, call.packet):
            return elementwise.elementwise(self.context, call)
        if any(self.context.ids(tensor) is not None for tensor in call.inputs):
            self._note_unknown(str(call.packet))
        return self.context.blend(call)

    def _note_unknown(self, name: str) -> None:
        self.context.unknown[name] = self.context.unknown.get(name, 0) + 1

    def _remember_constant(self, call: Call) -> None:
        """Keeps the values of small constants, such as the index `[-2]`, when they are copied to meta."""
        origin = call.inputs[0]
        if origin.is_meta or origin.numel() > _SMALL or not call.output.is_meta:
            return
        if call.output.shape == origin.shape and call.packet in (
            _aten._to_copy,
            _aten.copy_,
            _aten.lift_fresh,
        ):
            self.context.storages.facts(call.output).known = origin.detach().clone()


class _ListedIndices(TorchFunctionMode):
    """Converts the list in `x[..., [-2], :]` to a tensor on the host, so that the tracer can read its values.

    Indexing would create it on the device of `x`, where it has no values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__getitem__" and isinstance(args[1], tuple):
            key = tuple(torch.tensor(i) if isinstance(i, list) and i else i for i in args[1])
            return func(args[0], key)
        return func(*args, **(kwargs or {}))


def _is_view(call: Call) -> bool:
    """Whether every result shares the storage, and so the facts, of an argument."""
    memories = {tensor.untyped_storage()._cdata for tensor in call.inputs}
    return all(tensor.untyped_storage()._cdata in memories for tensor in call.outputs)


_RULES: Final[dict[Any, Any]] = {
    **dict.fromkeys(products.PRODUCTS, products.product),
    **dict.fromkeys(products.ATTENTIONS, products.attention),
    **dict.fromkeys(products.BIASES, products.attention_bias),
    **dict.fromkeys(elementwise.REDUCTIONS, elementwise.reduction),
    **dict.fromkeys(elementwise.NORMS, elementwise.norm),
    **dict.fromkeys(elementwise.CONVOLUTIONS, elementwise.convolution),
    **dict.fromkeys(moves.COPIES, moves.copy),
    **dict.fromkeys(moves.PICKS, moves.pick),
    **dict.fromkeys(moves.ALONG_ONE, moves.pick_along),
    **dict.fromkeys(moves.PLACES, moves.place),
    _aten.native_group_norm: elementwise.group_norm,
    _aten.embedding: moves.embedding,
    _aten.copy_: moves.overwrite,
}
