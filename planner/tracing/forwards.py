"""Runs a model's forward and observes every module call and every aten operation; equal layers run once."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from planner.tracing.answers import data_answer, note_truth, selecting_everything
from planner.tracing.caches import share_cache_layers
from planner.tracing.fused_ops import FusedOps
from planner.tracing.layers import Layer


@dataclass(slots=True)
class OutputSpec:
    """One leaf of a layer's result: an input, a view of an input, a new tensor, or another object.

    Attributes:
        source: index of the input leaf that it is or aliases, or None.
        shape, stride, offset, dtype, device: of a tensor that is not itself an input; else `shape` is None.
        value: the object, when it is not a tensor.
        label: what the subclass's `label` returned for the tensor.
    """

    source: int | None = None
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    value: Any = None
    label: Any = None


@dataclass(slots=True)
class Template:
    """The first run of a layer on inputs of certain shapes.

    Attributes:
        layer: the layer that was run.
        input_labels: what the subclass's `label` returned for each input leaf.
        outputs: how to create the result again.
        structure: pytree of the result.
        first, last: numbers of events before and after the run (see `ForwardTracer.clock`).
        called: modules inside it that ran, by first call; set by the first replay.
        output_bytes: size of its new tensors, where a subclass counts them.
        edges: bytes that flowed into its modules, where a subclass records them; set by the first replay.
    """

    layer: Layer
    input_labels: list[Any]
    first: int
    last: int = 0
    outputs: list[OutputSpec] = field(default_factory=list)
    structure: TreeSpec | None = None
    output_bytes: int = 0
    called: list[str] | None = None
    edges: list[tuple[tuple[str, str], int]] | None = None


@dataclass(slots=True)
class Replay:
    """A layer that was not run, because an equal layer was.

    Attributes:
        template: the run of the equal layer.
        target: fqn of the layer that was not run.
        input_labels: as in Template, for this call.
        clock: number of events before it would have started.
    """

    template: Template
    target: str
    input_labels: list[Any]
    clock: int

    @property
    def source(self) -> str:
        """Fqn of the layer that was run."""
        return self.template.layer.name

    def rename(self, name: str) -> str:
        """The fqn in the layer that was not run for `name`, an fqn in the layer that was."""
        return self.target + name[len(self.source) :]


def is_under(name: str, ancestor: str) -> bool:
    """Whether `name` is `ancestor` or a module inside it."""
    return ancestor == "" or name == ancestor or name.startswith(ancestor + ".")


class ForwardTracer(TorchDispatchMode):
    """Base of the tracers. Subclasses override the `on_*` methods and `label`.

    Attributes:
        stack: fqns of the modules whose forwards are running, outermost first.
        calls: number of forwards of each module, replayed ones included.
        order: fqn → its rank by first call.
        replays: layers that were not run, in order of execution.
        clock: number of events recorded so far.
    """

    def __init__(self, model: nn.Module, layers: dict[str, Layer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.layers = layers
        self.stack: list[str] = []
        self.calls: Counter[str] = Counter()
        self.order: dict[str, int] = {}
        self.replays: list[Replay] = []
        self.clock = 0
        self._templates: dict[Any, Template] = {}
        self._paused = False

    # ---- for subclasses
    def on_enter(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Called before a module's own forward; returns the arguments to call it with.

        Args:
            name: fqn of the module.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
        """
        return args, kwargs

    def on_leave(self, name: str) -> None:
        """Called after a module's own forward."""

    def on_op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called for each aten operation; runs it and returns its result.

        Args:
            func: the overload to run.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        return func(*args, **kwargs)

    def on_template_begin(self, template: Template) -> None:
        """Called before a layer runs for the first time."""

    def on_template_end(self, template: Template, outputs: list[torch.Tensor]) -> None:
        """Called after a layer has run for the first time; `outputs` are its new tensors."""

    def on_replay(self, replay: Replay, inputs: list[Any]) -> None:
        """Called before the results of a layer that is not run are created."""

    def make_output(self, spec: OutputSpec, replay: Replay) -> torch.Tensor:
        """A new tensor for a result of a layer that is not run."""
        assert spec.shape is not None
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)

    def label(self, tensor: torch.Tensor) -> Any:
        """What to record of an input or output tensor of a layer."""
        return None

    @property
    def current(self) -> str:
        """Fqn of the module whose own forward is running."""
        return self.stack[-1] if self.stack else ""

    # ---- running
    def run(self, inputs: dict[str, Any]) -> Any:
        """One forward of the whole model; returns its output."""
        wrapped = [(module, module.__dict__.get("forward")) for module in self.model.modules()]
        for name, module in self.model.named_modules():
            module.__dict__["forward"] = self._observed(name, module.forward)
        try:
            with torch.no_grad(), FusedOps(), self:
                return self.model(**inputs)
        finally:
            for module, forward in wrapped:
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = forward

    def _observed(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def body(args: Any, kwargs: Any) -> Any:
            self.stack.append(name)
            self.calls[name] += 1
            self.order.setdefault(name, len(self.order))
            try:
                args, kwargs = self.on_enter(name, args, kwargs)
                return forward(*args, **kwargs)
            finally:
                self.on_leave(name)
                self.stack.pop()

        layer = self.layers.get(name)
        if layer is None:
            return lambda *args, **kwargs: body(args, kwargs)
        return lambda *args, **kwargs: self._layer_call(layer, body, args, kwargs)

    def _layer_call(self, layer: Layer, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        leaves, _ = tree_flatten((args, kwargs))
        key = (layer.signature, tuple(_shape_key(leaf) for leaf in leaves))
        template = self._templates.get(key)
        if template is not None and template.layer.name != layer.name:
            return self._replay(template, layer, leaves)
        labels = [self.label(leaf) if isinstance(leaf, torch.Tensor) else None for leaf in leaves]
        template = Template(layer=layer, input_labels=labels, first=self.clock)
        self.on_template_begin(template)
        result = body(args, kwargs)
        self._finish(template, leaves, result)
        self._templates[key] = template
        return result

    def _finish(self, template: Template, leaves: list[Any], result: Any) -> None:
        outputs, template.structure = tree_flatten(result)
        template.last = self.clock
        positions = {id(leaf): i for i, leaf in enumerate(leaves)}
        tensors = [(i, leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        storages = {tensor.untyped_storage()._cdata: i for i, tensor in tensors}
        new: list[torch.Tensor] = []
        for output in outputs:
            template.outputs.append(self._output_spec(output, positions, storages))
            if isinstance(output, torch.Tensor) and template.outputs[-1].source is None:
                new.append(output)
        self.on_template_end(template, new)

    def _output_spec(self, output: Any, positions: dict[int, int], storages: dict[int, int]) -> OutputSpec:
        if id(output) in positions and output is not None:
            return OutputSpec(source=positions[id(output)])
        if not isinstance(output, torch.Tensor):
            return OutputSpec(value=output)
        return OutputSpec(
            source=storages.get(output.untyped_storage()._cdata),
            shape=tuple(output.shape),
            stride=tuple(output.stride()),
            offset=int(output.storage_offset()),
            dtype=output.dtype,
            device=output.device,
            label=self.label(output),
        )

    def _replay(self, template: Template, layer: Layer, leaves: list[Any]) -> Any:
        labels = [self.label(leaf) if isinstance(leaf, torch.Tensor) else None for leaf in leaves]
        replay = Replay(template=template, target=layer.name, input_labels=labels, clock=self.clock)
        self.replays.append(replay)
        if template.called is None:
            template.called = [n for n in self.order if is_under(n, replay.source)]
        for name in template.called:
            renamed = replay.rename(name)
            self.order.setdefault(renamed, len(self.order))
            self.calls[renamed] = max(self.calls[name], self.calls[renamed])
        share_cache_layers(leaves, ran=template.layer, skipped=layer)
        self.on_replay(replay, leaves)
        self._paused = True
        try:
            results = [self._again(spec, replay, leaves) for spec in template.outputs]
        finally:
            self._paused = False
        assert template.structure is not None
        return tree_unflatten(results, template.structure)

    def _again(self, spec: OutputSpec, replay: Replay, leaves: list[Any]) -> Any:
        if spec.source is not None:
            base = leaves[spec.source]
            if spec.shape is None:
                return base
            return torch.as_strided(base, spec.shape, spec.stride, spec.offset)
        return spec.value if spec.shape is None else self.make_output(spec, replay)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        packet = func._overloadpacket
        if _lacks_data(args):
            answered, answer = data_answer(packet, args)
            if answered:
                return answer
            args = selecting_everything(packet, args)
        out = self.on_op(func, args, kwargs)
        note_truth(packet, args, out)
        return out


def _lacks_data(args: tuple[Any, ...]) -> bool:
    """Whether the operation is on tensors of the trace, not on real ones that the model created itself."""
    if not args or not isinstance(args[0], torch.Tensor):
        return True
    return args[0].is_meta or type(args[0]) is not torch.Tensor


def _shape_key(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype
    if isinstance(leaf, (int, float, bool, str, type(None))):
        return leaf
    return type(leaf).__name__
