"""Prices a model for one machine, one workload and one configuration: a `Scenario` becomes a `Problem`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from planner.cost.memory_terms import (
    MemoryTerm,
    host_process_bytes,
    kv_bytes,
    kv_fragmentation_bytes,
    largest,
    peak_bytes,
    phase_cost,
    sampling_bytes,
    self_context,
)
from planner.cost.placement_units import Chain, Leaf, Unit
from planner.cost.problem import CPU, GPU, Capacity, LeafPrice, Problem, UnitPrice, UnitWork
from planner.cost.runtime_model import Scenario
from planner.cost.time_terms import Engine, cpu_engine, dispatch_s, gpu_engine, kernel_s
from planner.graph.schema import ModuleGraph, Node
from planner.schema.breakdown import PHASES
from planner.schema.workload import Workload


def price(scenario: Scenario) -> Problem:
    """Price one rank's scenario: work, memory and movement of every unit and leaf.

    Raises:
        InvalidInputError: the device has no rate for the workload's dtype.
    """
    graph, chain, workload = scenario.graph, scenario.chain, scenario.workload
    runtime_model = scenario.runtime_model
    engines = _engines(scenario)
    contexts = Contexts.of(graph, workload)
    pricer = _Pricer(scenario, engines, contexts)
    peaks = runtime_model.streamed_peaks(scenario, pricer.live)
    units = pricer.units()
    main = CPU if scenario.execution.main == "cpu" else GPU
    return Problem(
        scenario=scenario,
        units=units if peaks is None else tuple(_restaged(unit, peaks) for unit in units),
        glue={phase: pricer.work(chain.glue, {}, engines[main], phase, hook_s=0.0) for phase in PHASES},
        glue_peak={
            phase: max(sampling_bytes(graph, workload), pricer.peak(chain.glue, phase)) for phase in PHASES
        },
        crossing_bytes=_crossing_bytes(graph, chain, workload),
        num_decode_steps=workload.new_tokens - 1 if graph.generates else 0,
        engines=engines,
        buffers=runtime_model.buffers(scenario),
        capacities=_capacities(scenario),
        communication_s=runtime_model.communication_s(scenario),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Tokens in the self-attention cache.

    Attributes:
        prefill: after prefill.
        decode: after the last decode step.
        mean: in the mean decode step.
    """

    prefill: int
    decode: int
    mean: int

    @classmethod
    def of(cls, graph: ModuleGraph, workload: Workload) -> "Contexts":
        """The contexts of one `generate()` call; after decode step i the first one has grown by i tokens."""
        steps = workload.new_tokens - 1
        return cls(
            prefill=self_context(graph, workload, 0),
            decode=self_context(graph, workload, steps),
            mean=self_context(graph, workload, (steps + 1) // 2),
        )

    def last(self, phase: str) -> int:
        """The context at the end of a phase, where memory use is largest."""
        return self.prefill if phase == "prefill" else self.decode

    def typical(self, phase: str) -> int:
        """The context at which the time of a phase is priced."""
        return self.prefill if phase == "prefill" else self.mean


def _engines(scenario: Scenario) -> dict[str, Engine]:
    profile, execution, dtype = scenario.profile, scenario.execution, scenario.workload.dtype
    engines = {}
    if execution.main != "cpu" and profile.gpu is not None:
        engines[GPU] = gpu_engine(profile.gpu, dtype)
    if execution.main == "cpu" or execution.cpu_execution:
        engines[CPU] = cpu_engine(profile.host, dtype)
    return engines


def _capacities(scenario: Scenario) -> dict[str, Capacity]:
    """Capacities of the GPUs that one rank can use, and of the host, which all ranks share."""
    profile, execution = scenario.profile, scenario.execution
    capacities: dict[str, Capacity] = {}
    if execution.main != "cpu" and profile.gpu is not None:
        gpu = Capacity(
            total_bytes=round(profile.gpu.memory_bytes.value),
            context_bytes=round(profile.gpu.context_bytes.value),
        )
        capacities |= {f"gpu:{index}": gpu for index in range(scenario.num_stages)}
    capacities[CPU] = Capacity(
        total_bytes=round(profile.host.memory_bytes.value),
        context_bytes=execution.num_ranks * host_process_bytes(profile),
    )
    return capacities


class _Pricer:
    """Prices the units of one scenario."""

    def __init__(self, scenario: Scenario, engines: dict[str, Engine], contexts: Contexts) -> None:
        self.scenario, self.engines, self.contexts = scenario, engines, contexts
        self.workload = scenario.workload

    def units(self) -> tuple[UnitPrice, ...]:
        """Price every unit; units of equal structure are priced once, since only their names differ."""
        by_structure: dict[bytes, UnitPrice] = {}
        result = []
        for unit in self.scenario.chain.units:
            priced = by_structure.get(unit.key)
            if priced is None:
                by_structure[unit.key] = priced = self._unit(unit)
            result.append(_renamed(priced, unit) if priced.unit is not unit else priced)
        return tuple(result)

    def live(self, node: Node, phase: str) -> int | None:
        """Activation bytes while a module's own operations run; None where it has none in the phase."""
        cost = phase_cost(node, phase, self.workload)
        if cost is None or cost.num_ops == 0:
            return None
        return peak_bytes(node, phase, self.workload, self.contexts.last(phase))

    def peak(self, nodes: Iterable[Node], phase: str) -> int:
        """The largest activation bytes while any of the modules runs."""
        context = self.contexts.last(phase)
        return largest(peak_bytes(node, phase, self.workload, context) for node in nodes)

    def work(
        self,
        nodes: Iterable[Node],
        weights: Mapping[str, int],
        engine: Engine,
        phase: str,
        *,
        hook_s: float,
    ) -> UnitWork:
        """The work of the modules `nodes` in one phase.

        Args:
            nodes: the modules.
            weights: module → bytes of its parameters; a module that is absent has none.
            engine: the GPU or CPU that runs them.
            phase: `prefill` or `decode`.
            hook_s: host time of the runtime's hooks on them, in seconds per forward.
        """
        context, nodes = self.contexts.typical(phase), tuple(nodes)
        return UnitWork(
            kernel_s=sum(
                kernel_s(
                    n, engine, phase, self.workload, context=context, weight_bytes=weights.get(n.name, 0)
                )
                for n in nodes
            ),
            dispatch_s=sum(dispatch_s(n, self.scenario.profile, phase, self.workload) for n in nodes),
            hook_s=hook_s,
            asynchronous=engine.asynchronous,
        )

    def _unit(self, unit: Unit) -> UnitPrice:
        itemsize, runtime_model = self.workload.itemsize_bytes, self.scenario.runtime_model
        weights = {
            module.name: sum(t.num_bytes(itemsize) for t in owned if t.tensor.kind == "parameter")
            for leaf in unit.leaves
            for module, owned in zip(leaf.modules, leaf.tensors, strict=True)
        }
        hooked = [n for n in unit.nodes if runtime_model.hooks_on == "modules" or n.name in weights]
        hook_s = runtime_model.hook(self.scenario.profile).value * sum(n.num_calls for n in hooked)
        kv = {phase: self._kv(unit, phase) for phase in PHASES}
        return UnitPrice(
            unit=unit,
            work={
                kind: {
                    phase: self.work(unit.nodes, weights, engine, phase, hook_s=hook_s) for phase in PHASES
                }
                for kind, engine in self.engines.items()
            },
            kv=kv,
            peak={phase: self.peak(unit.nodes, phase) for phase in PHASES},
            memory={
                kind: {phase: self._memory(unit, kind, kv[phase]) for phase in PHASES} for kind in (GPU, CPU)
            },
            leaves=tuple(self._leaf(leaf, weights) for leaf in unit.leaves),
        )

    def _kv(self, unit: Unit, phase: str) -> int:
        return sum(kv_bytes(node, self.workload, self.contexts.last(phase)) for node in unit.nodes)

    def _memory(self, unit: Unit, kind: str, kv: int) -> MemoryTerm:
        """A unit's buffers, its cache unless that is offloaded, and on a GPU the cache's fragmentation."""
        cached = kv if self.scenario.execution.kv_cache == "device" else 0
        return MemoryTerm(
            weights=sum(leaf.buffer_bytes(self.workload.itemsize_bytes) for leaf in unit.leaves),
            kv=cached,
            fragmentation=kv_fragmentation_bytes(cached) if kind == GPU else 0,
        )

    def _leaf(self, leaf: Leaf, weights: Mapping[str, int]) -> LeafPrice:
        itemsize = self.workload.itemsize_bytes
        parameters = [t for owned in leaf.tensors for t in owned if t.tensor.kind == "parameter"]
        live = {phase: {m.name: self.live(m, phase) for m in leaf.modules} for phase in PHASES}
        return LeafPrice(
            leaf=leaf,
            stored_bytes=leaf.stored_bytes(itemsize),
            moved_bytes=sum(t.num_bytes(itemsize) for t in parameters),
            num_tensors=len(parameters),
            forwards={
                phase: largest(m.num_calls for m in leaf.modules if peaks[m.name] is not None)
                for phase, peaks in live.items()
            },
            streamed_peak={
                phase: largest(peak + weights[name] for name, peak in peaks.items() if peak is not None)
                for phase, peaks in live.items()
            },
            streamable=all(m.num_calls > 0 for m in leaf.modules),
        )


def _renamed(price: UnitPrice, unit: Unit) -> UnitPrice:
    """The price of a unit of equal structure, with the names of `unit`."""
    leaves = zip(unit.leaves, price.leaves, strict=True)
    return replace(price, unit=unit, leaves=tuple(replace(priced, leaf=leaf) for leaf, priced in leaves))


def _restaged(unit: UnitPrice, peaks: Mapping[str, Mapping[str, int]]) -> UnitPrice:
    """The unit with the peaks of a runtime that prefetches: see `RuntimeModel.streamed_peaks`."""
    leaves = []
    for leaf in unit.leaves:
        of_modules = [peaks[module.name] for module in leaf.leaf.modules if module.name in peaks]
        worst = {phase: largest(of_module[phase] for of_module in of_modules) for phase in PHASES}
        leaves.append(replace(leaf, streamed_peak=worst))
    return replace(unit, leaves=tuple(leaves))


def _crossing_bytes(graph: ModuleGraph, chain: Chain, workload: Workload) -> dict[str, int]:
    """Bytes of the widest edge into a unit from another one, which is the residual stream in practice."""
    unit_of = {n.name: index for index, unit in enumerate(chain.units) for n in unit.nodes}
    per_token = max(
        (
            e.bytes_per_token
            for e in graph.edges
            if e.target in unit_of and e.source in unit_of and unit_of[e.source] != unit_of[e.target]
        ),
        default=0.0,
    )
    scale = workload.batch_size * workload.itemsize_bytes / 2
    return {"prefill": round(per_token * scale * workload.prompt_tokens), "decode": round(per_token * scale)}
