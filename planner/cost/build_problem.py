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
    """Price one rank's scenario.

    Raises:
        InvalidInputError: the device does not run the workload's dtype.
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
    """Self-attention context: at the end of each phase, and the mean over decode steps."""

    prefill: int
    decode: int
    mean: int

    @classmethod
    def of(cls, graph: ModuleGraph, workload: Workload) -> "Contexts":
        """For one `generate()` call: step i of `new_tokens - 1` sees the first context plus i."""
        steps = workload.new_tokens - 1
        return cls(
            prefill=self_context(graph, workload, 0),
            decode=self_context(graph, workload, steps),
            mean=self_context(graph, workload, (steps + 1) // 2),
        )

    def last(self, phase: str) -> int:
        """At the phase's end, where memory is worst."""
        return self.prefill if phase == "prefill" else self.decode

    def typical(self, phase: str) -> int:
        """What the phase's time is priced at."""
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
    """Of the GPUs that one rank can use, and of the host, which all ranks share."""
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
        """Price each structure once; its twins differ in names only."""
        first: dict[bytes, UnitPrice] = {}
        result = []
        for unit in self.scenario.chain.units:
            twin = first.get(unit.key)
            if twin is None:
                first[unit.key] = twin = self._unit(unit)
            result.append(_renamed(twin, unit) if twin.unit is not unit else twin)
        return tuple(result)

    def live(self, node: Node, phase: str) -> int | None:
        """Activations while a module's own code runs; None where it has none."""
        cost = phase_cost(node, phase, self.workload)
        if cost is None or cost.num_ops == 0:
            return None
        return peak_bytes(node, phase, self.workload, self.contexts.last(phase))

    def peak(self, nodes: Iterable[Node], phase: str) -> int:
        """The most activations while any of some modules runs."""
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
        """The work of some modules in one phase.

        Args:
            nodes: the modules.
            weights: module → bytes of its parameters.
            engine: what runs them.
            phase: `prefill` or `decode`.
            hook_s: host time of the runtime's hooks on them.
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
        """A unit's buffers, and its cache unless that is offloaded; on a GPU a growing cache fragments."""
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


def _renamed(twin: UnitPrice, unit: Unit) -> UnitPrice:
    leaves = zip(unit.leaves, twin.leaves, strict=True)
    return replace(twin, unit=unit, leaves=tuple(replace(priced, leaf=leaf) for leaf, priced in leaves))


def _restaged(unit: UnitPrice, peaks: Mapping[str, Mapping[str, int]]) -> UnitPrice:
    """The unit as a runtime stages it that fetches ahead: see `RuntimeModel.streamed_peaks`."""
    leaves = []
    for leaf in unit.leaves:
        found = [peaks[module.name] for module in leaf.leaf.modules if module.name in peaks]
        worst = {phase: largest(one[phase] for one in found) for phase in PHASES}
        leaves.append(replace(leaf, streamed_peak=worst))
    return replace(unit, leaves=tuple(leaves))


def _crossing_bytes(graph: ModuleGraph, chain: Chain, workload: Workload) -> dict[str, int]:
    """The widest flow into a unit from outside it: the residual stream, near enough."""
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
