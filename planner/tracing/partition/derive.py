"""Derives roles from traced forwards, and searches for weights to replicate so that more can be cut."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._pytree import tree_leaves

from planner.tracing.layers import Layer, equal_layers
from planner.tracing.meta_model import prefill_inputs, takes
from planner.tracing.partition.resolve import Resolver, all_names, replayed
from planner.tracing.partition.schema import ParameterPartition, PartitionSpec
from planner.tracing.partition.tracer import PartitionTracer

Forced: TypeAlias = Mapping[str, npt.NDArray[np.bool_]]
_PROMPT = 3
_MOST_ROUNDS = 8
_MOST_BLOCKED = 4


@dataclass(slots=True)
class Attempt:
    """One traced forward.

    Attributes:
        forced: parameter → mask of its outputs that every rank holds.
        tracer: the tracer after the forward.
        parameters: the derived roles.
        constants: modules with a constant that must be cut.
    """

    forced: Forced
    tracer: PartitionTracer
    parameters: dict[str, ParameterPartition]
    constants: tuple[str, ...]

    @property
    def row(self) -> set[str]:
        """The row-parallel parameters."""
        return {name for name, role in self.parameters.items() if role.role == "row"}

    @property
    def blocked(self) -> list[str]:
        """Weights that sum over several features which must be on one rank."""
        context = self.tracer.context
        labels = context.sets.labels()
        shared = {int(labels[member]) for member in context.sets.shared}
        names = set(context.blocked)
        for (name, _), ids in context.inputs.items():
            if shared.intersection(np.unique(labels[ids]).tolist()):
                names.add(name)
        return [name for name in context.outputs if name in names and name not in self.row]


def derive(model: Any, layers: dict[str, Layer] | None = None, *, prompt: int = _PROMPT) -> PartitionSpec:
    """The tensor-parallel roles of a model on the meta device.

    Args:
        model: from `planner.tracing.meta_model.build`.
        layers: its equal layers; determined when None.
        prompt: tokens of the traced prompt.

    Raises:
        Exception: whatever the forward raises when it cannot be traced.
    """
    search = _Search(model, equal_layers(model) if layers is None else layers, prompt)
    best = search.best()
    context = best.tracer.context
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    roles = PartitionSpec(
        model_type=str(model.config.model_type),
        parameters=replayed(best.parameters, best.tracer.replays),
        biases=_replayed_names(context.biases, best.tracer),
        replicated=tuple(sorted(best.forced)),
        constants=best.constants,
        unknown=dict(context.unknown),
    )
    listed = all_names(roles, names, context.storages.aliases)
    return PartitionSpec(
        model_type=roles.model_type,
        parameters=listed,
        biases=frozenset(n for n in names if n in roles.biases and n not in listed),
        replicated=roles.replicated,
        constants=roles.constants,
        unknown=roles.unknown,
    )


def _replayed_names(names: set[str], tracer: PartitionTracer) -> frozenset[str]:
    every_name = set(names)
    for replay in tracer.replays:
        every_name |= {replay.rename(name) for name in every_name if name.startswith(replay.source + ".")}
    return frozenset(every_name)


class _Search:
    """Traces a model several times, each time with other outputs on every rank."""

    def __init__(self, model: Any, layers: dict[str, Layer], prompt: int) -> None:
        self._model = model
        self._layers = layers
        self._prompt = prompt
        # Embedding tables stay whole; weights whose inputs a later operation unites are added.
        self._unsplit = _tables(model)

    def best(self) -> Attempt:
        best = self._with_shared(self._attempt({}))
        for name in best.blocked[:_MOST_BLOCKED]:
            if name in best.blocked:
                best = self._freed(best, name)
        return self._pruned(best)

    def _attempt(self, forced: Forced) -> Attempt:
        for _ in range(_MOST_ROUNDS):
            attempt = self._traced(forced)
            wrong = attempt.tracer.context.row - attempt.row
            if not wrong:
                break
            # A later norm united the features that they sum over, so they are not row-parallel.
            self._unsplit |= wrong
        return attempt

    def _traced(self, forced: Forced) -> Attempt:
        tracer = PartitionTracer(self._model, self._layers, forced, self._unsplit)
        inputs = prefill_inputs(self._model, 1, self._prompt, torch.device("meta"))
        if takes(self._model, "use_cache"):
            inputs["use_cache"] = False
        output = tracer.run(inputs)
        returned = [
            ids
            for leaf in tree_leaves(dict(output))
            if isinstance(leaf, torch.Tensor) and (ids := tracer.context.ids(leaf)) is not None
        ]
        returned.append(np.asarray(tracer.context.held, dtype=np.int64))
        resolver = Resolver(tracer.context, returned)
        return Attempt(forced, tracer, resolver.parameters(), resolver.constants())

    def _with_shared(self, start: Attempt) -> Attempt:
        """Replicates features that several sets share, as one head of keys for all heads of queries."""
        best = current = start
        for _ in range(_MOST_BLOCKED):
            forced = _sharing(current, current.blocked)
            if forced is None:
                break
            current = self._attempt(forced)
            if len(current.row) > len(best.row):
                best = current
        return best

    def _freed(self, best: Attempt, name: str) -> Attempt:
        """Replicates weights, the smallest first, until `name` is row-parallel."""
        current = best
        for _ in range(_MOST_ROUNDS):
            forced = _sharing(current, [name]) or _without_smallest(current, name)
            if forced is None:
                return best
            current = self._attempt(forced)
            if name in current.row:
                break
        return current if name in current.row and len(current.row) > len(best.row) else best

    def _pruned(self, best: Attempt) -> Attempt:
        """Cuts again what need not be replicated, the largest first."""
        for name in sorted(best.forced, key=lambda parameter: -len(best.forced[parameter])):
            attempt = self._attempt({key: mask for key, mask in best.forced.items() if key != name})
            if len(attempt.row) >= len(best.row) and len(attempt.parameters) >= len(best.parameters):
                best = attempt
        return best


def _tables(model: Any) -> frozenset[str]:
    """Names of the parameters of embeddings, those of tied parameters included."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in named if id(parameter) in tables)


def _sets_of(attempt: Attempt, blocked: list[str]) -> set[int]:
    """Labels of the sets that the blocked weights sum over."""
    context = attempt.tracer.context
    labels = context.sets.labels()
    summed = [ids for (name, _), ids in context.inputs.items() if name in blocked]
    return {int(label) for ids in summed for label in np.unique(labels[ids])} - {0}


def _sharing(attempt: Attempt, blocked: list[str]) -> Forced | None:
    """`forced` with the features that several sets share; None when it has them already."""
    if not blocked:
        return None
    sets = attempt.tracer.context.sets
    labels, wanted = sets.labels(), _sets_of(attempt, blocked)
    shared = [ids for member, ids in sets.shared.items() if int(labels[member]) in wanted]
    if not shared:
        return None
    return _extended(attempt, np.unique(np.concatenate(shared)))


def _extended(attempt: Attempt, ids: npt.NDArray[np.int64]) -> Forced | None:
    forced = dict(attempt.forced)
    changed = False
    for name, (dims, first) in attempt.tracer.context.outputs.items():
        mask = np.isin(first + np.arange(_extent(attempt, name, dims)), ids)
        already = forced.get(name, np.zeros(len(mask), dtype=bool))
        if (mask & ~already).any():
            forced[name] = already | mask
            changed = True
    return forced if changed else None


def _without_smallest(attempt: Attempt, blocked: str) -> Forced | None:
    """`forced` with the smallest weight that computes inputs of `blocked`; None when it is the last."""
    context = attempt.tracer.context
    labels, wanted = context.sets.labels(), _sets_of(attempt, [blocked])
    makers = []
    for name, (dims, first) in context.outputs.items():
        extent = _extent(attempt, name, dims)
        already = attempt.forced.get(name)
        if already is not None and already.all():
            continue
        if wanted.intersection(labels[first : first + extent].tolist()):
            makers.append((extent, name))
    if len(makers) < 2:
        return None
    extent, name = min(makers)
    return {**attempt.forced, name: np.ones(extent, dtype=bool)}


def _extent(attempt: Attempt, name: str, dims: tuple[int, ...]) -> int:
    return int(np.prod([attempt.tracer.context.shapes[name][dim] for dim in dims]))
