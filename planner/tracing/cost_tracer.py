"""Records the costs of a forward: operations, FLOPs, moved bytes, live bytes, cache and activation flow."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from planner.tracing.caches import cached_tensors
from planner.tracing.flops import flops_of
from planner.tracing.forwards import ForwardTracer, OutputSpec, Replay, Template, is_under
from planner.tracing.layers import Layer
from planner.tracing.liveness import Storage, StorageLedger, live_bytes
from planner.tracing.meta_model import CACHE_FIELDS, cache_of

_aten: Final = torch.ops.aten
# They launch no kernel: changes of metadata that are not marked as views, and allocations.
_FREE: Final = frozenset(
    {_aten._unsafe_view, _aten._reshape_alias, _aten.lift, _aten.empty, _aten.empty_like, _aten.new_empty}
    | {_aten.empty_strided, _aten.new_empty_strided}
)
_SOURCES: Final = "_planner_sources"


@dataclass(slots=True)
class Event:
    """One operation, or a marker.

    Attributes:
        name: fqn of the module whose own code ran it. None for a marker: where a layer starts, ends, or would
            have run.
        flops: its floating-point operations.
        touched: storages that it read and wrote, with the bytes of each; inputs first.
        num_inputs: how many of `touched` are inputs.
    """

    name: str | None = None
    flops: int = 0
    touched: list[tuple[Storage, int]] = field(default_factory=list)
    num_inputs: int = 0


@dataclass(slots=True)
class Cached:
    """Bytes of one cached tensor.

    Attributes:
        name: fqn of the module that created it.
        num_bytes: its size.
        dtype: its dtype.
        window: tokens after which it stops growing, or None.
    """

    name: str
    num_bytes: int
    dtype: torch.dtype
    window: int | None


@dataclass(slots=True)
class PhaseSample:
    """Costs of one phase at one size.

    Attributes:
        names: the module of each event; None for a marker.
        flops, moved, live: floating-point operations, moved bytes and live bytes of each event.
        replays: layers that were not run.
        shifts: for each of them, live bytes when it would have started minus those when its template started.
        cached: the cache after the phase, of layers that were run.
        edges: bytes that flow from one module to another.
    """

    names: list[str | None]
    flops: npt.NDArray[np.int64]
    moved: npt.NDArray[np.int64]
    live: npt.NDArray[np.int64]
    replays: list[Replay]
    shifts: list[int]
    cached: list[Cached]
    edges: Counter[tuple[str, str]]


class CostTracer(ForwardTracer):
    """Traces a model on the meta device. Run prefill first, then decode with the resulting cache."""

    def __init__(self, model: nn.Module, layers: dict[str, Layer]) -> None:
        super().__init__(model, layers)
        self.ledger = StorageLedger(lambda: self.clock)
        self.ledger.ignore(list(model.parameters()) + list(model.buffers()))
        self.events: list[Event] = []
        self.edges: Counter[tuple[str, str]] = Counter()
        self._flowed: set[tuple[int, str]] = set()

    def phase(self, inputs: dict[str, Any], sampled_vocabulary: bool) -> tuple[Any, PhaseSample]:
        """Runs one phase.

        Args:
            inputs: arguments of the forward by name.
            sampled_vocabulary: whether to add an event of the root for `generate()`'s float32 copy of the
                last position's logits, which is made while the output is alive.

        Returns:
            The model's output, and the costs.
        """
        self.ledger.restart()
        self.events, self.clock = [], 0
        self.replays, self._templates = [], {}
        self.edges, self._flowed = Counter(), set()
        leaves, _ = tree_flatten(inputs)
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                self.ledger.add(leaf, "", -1)
        before = [inputs.get(key) for key in CACHE_FIELDS]
        old = {id(s) for s in self._cache_storages(before)}
        output = self.run(inputs)
        logits = getattr(output, "logits", None)
        if sampled_vocabulary and isinstance(logits, torch.Tensor):
            copy = torch.empty(logits[..., -1, :].shape, dtype=torch.float32, device="meta")
            storage = self.ledger.add(copy, "", self.clock)
            assert storage is not None
            self._append(Event(name="", flops=0, touched=[(storage, storage.num_bytes)], num_inputs=0))
        return output, self._sample(cache_of(output), old)

    def _cache_storages(self, value: Any) -> list[Storage]:
        storages = [self.ledger.find(c.tensor) for c in cached_tensors(value)]
        return [s for s in storages if s is not None]

    # ---- recording
    def _append(self, event: Event) -> None:
        self.events.append(event)
        self.clock += 1

    def on_op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `planner.tracing.forwards.ForwardTracer.on_op`; records the operation's costs as an event."""
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        inputs = [t for t in _tensors((args, kwargs)) if t.is_meta]
        outputs = [t for t in _tensors(out) if t.is_meta]
        name = self.current
        if func.is_view or packet in _FREE:
            for tensor in outputs:
                self.ledger.add(tensor, name, self.clock)
                setattr(tensor, _SOURCES, _sources(inputs[0]) if inputs else frozenset((name,)))
            return out
        touched: list[tuple[Storage, int]] = []
        for tensor in inputs:
            storage = self.ledger.find(tensor)
            if storage is not None:
                touched.append((storage, min(_num_bytes(tensor), storage.num_bytes)))
                self._flow(tensor, storage, name)
        num_inputs = len(touched)
        for tensor in outputs:
            storage = self.ledger.add(tensor, name, self.clock)
            if storage is not None:
                touched.append((storage, _num_bytes(tensor)))
                setattr(tensor, _SOURCES, frozenset((name,)))
        flops = flops_of(packet, args, kwargs, out)
        self._append(Event(name=name, flops=flops, touched=touched, num_inputs=num_inputs))
        return out

    def _flow(self, tensor: torch.Tensor, storage: Storage, reader: str) -> None:
        if (id(storage), reader) in self._flowed:
            return
        self._flowed.add((id(storage), reader))
        sources = _sources(tensor) - {reader}
        for source in sources:
            self.edges[source, reader] += _num_bytes(tensor) // len(sources)

    # ---- layers
    def label(self, tensor: torch.Tensor) -> Any:
        return _sources(tensor)

    def on_template_begin(self, template: Template) -> None:
        self._append(Event())

    def on_template_end(self, template: Template, outputs: list[torch.Tensor]) -> None:
        self._append(Event())
        storages = [self.ledger.find(t) for t in outputs]
        new = {id(s): s.num_bytes for s in storages if s is not None and s.born >= template.first}
        template.output_bytes = sum(new.values())

    def on_replay(self, replay: Replay, inputs: list[Any]) -> None:
        self._append(Event())
        template = replay.template
        if template.edges is None:
            template.edges = [(edge, n) for edge, n in self.edges.items() if is_under(edge[1], replay.source)]
        outside = dict(zip(map(_only, template.input_labels), replay.input_labels, strict=True))
        for (source, target), count in template.edges:
            if is_under(source, replay.source):
                self.edges[replay.rename(source), replay.rename(target)] += count
                continue
            for origin in outside.get(source) or (source,):
                self.edges[origin, replay.rename(target)] = count

    def make_output(self, spec: OutputSpec, replay: Replay) -> torch.Tensor:
        tensor = super().make_output(spec, replay)
        labels = spec.label or frozenset((replay.source,))
        sources = frozenset(replay.rename(n) if is_under(n, replay.source) else n for n in labels)
        setattr(tensor, _SOURCES, sources)
        self.ledger.add(tensor, next(iter(sources), replay.target), self.clock)
        return tensor

    # ---- after the phase
    def _sample(self, cache: tuple[str, Any] | None, old: set[int]) -> PhaseSample:
        cached: list[Cached] = []
        kept: Counter[int] = Counter()
        for item in cached_tensors(cache[1]) if cache is not None else []:
            storage = self.ledger.find(item.tensor)
            if storage is None:
                continue
            num_bytes = min(_num_bytes(item.tensor), storage.num_bytes - kept[id(storage)])
            kept[id(storage)] += num_bytes
            if not item.is_content:
                continue
            cached.append(
                Cached(name=storage.creator, num_bytes=num_bytes, dtype=item.tensor.dtype, window=item.window)
            )
        live, shifts = self._live(kept, old)
        in_cache = old | set(kept)
        moved = [sum(n for s, n in e.touched if id(s) not in in_cache) for e in self.events]
        return PhaseSample(
            names=[event.name for event in self.events],
            flops=np.array([event.flops for event in self.events], np.int64),
            moved=np.array(moved, np.int64),
            live=live,
            replays=list(self.replays),
            shifts=shifts,
            cached=cached,
            edges=self.edges,
        )

    def _live(self, kept: Counter[int], old: set[int]) -> tuple[npt.NDArray[np.int64], list[int]]:
        num_events = len(self.events)
        replaced = dict.fromkeys(old - set(kept), num_events)
        for index, event in enumerate(self.events):
            if any(id(s) in kept for s, _ in event.touched[event.num_inputs :]):
                for storage, _ in event.touched[: event.num_inputs]:
                    if id(storage) in replaced:
                        replaced[id(storage)] = min(replaced[id(storage)], index)
        storages = self.ledger.storages
        live = live_bytes(storages, num_events, cached=kept, replaced=replaced)
        shifts: list[int] = []
        for replay in self.replays:
            template = replay.template
            shifts.append(int(live[replay.clock] - live[template.first]))
            grown = int(live[template.last] - live[template.first])
            stays = max(0, grown - template.output_bytes)
            live[replay.clock + 1 :] += stays
        return live, shifts


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in _tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    return []


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _sources(tensor: torch.Tensor) -> frozenset[str]:
    sources: frozenset[str] = getattr(tensor, _SOURCES, frozenset())
    return sources


def _only(label: Any) -> Any:
    """The only producer in a label; None where there are several."""
    return next(iter(label)) if label and len(label) == 1 else None
