"""Prices a model for one machine, one workload and one way to run: a graph becomes a `Problem`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.cost.memory_terms import kv_bytes, largest, peak_bytes, phase_cost, sampling_bytes, self_context
from planner.cost.placement_units import Chain, Leaf, Unit
from planner.cost.problem import CPU, GPU, LeafPrice, Problem, UnitPrice, UnitWork
from planner.cost.runtime_model import ExecutionConfig, RuntimeModel
from planner.cost.time_terms import Engine, cpu_engine, dispatch_s, gpu_engine, kernel_s
from planner.graph.schema import ModuleGraph, Node
from planner.schema.breakdown import PHASES
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import Workload


def price(
    graph: ModuleGraph,
    chain: Chain,
    profile: HardwareProfile,
    workload: Workload,
    execution: ExecutionConfig,
    runtime_model: RuntimeModel,
    *,
    num_sequences: int | None = None,
) -> Problem:
    """Price a model for one machine, workload and way to run.

    Args:
        graph: what one rank holds and computes (see `RuntimeModel.rank_graph`).
        chain: its units.
        profile: the whole machine.
        workload: one rank's sequences.
        execution: the way to run.
        runtime_model: the runtime's.
        num_sequences: of all streams together; streams times the rank's for None.

    Raises:
        InvalidInputError: the device does not run the workload's dtype.
    """
    engines = _engines(profile, workload, execution)
    main = CPU if execution.main == "cpu" else GPU
    contexts = Contexts.of(graph, workload)
    glue = {
        phase: _work(chain.glue, {}, engines[main], phase, workload, contexts, profile, hook_s=0.0)
        for phase in PHASES
    }
    units = _price_units(chain.units, engines, workload, contexts, profile, runtime_model)
    peaks = runtime_model.streamed_peaks(
        graph, workload, lambda node, phase: _live(node, phase, workload, contexts)
    )
    return Problem(
        graph=graph,
        profile=profile,
        workload=workload,
        num_sequences=num_sequences or workload.batch_size * execution.num_streams,
        execution=execution,
        runtime_model=runtime_model,
        units=units if peaks is None else tuple(_restaged(unit, peaks) for unit in units),
        glue=glue,
        glue_peak={
            phase: max(
                sampling_bytes(graph, workload),
                largest(peak_bytes(n, phase, workload, contexts.last(phase)) for n in chain.glue),
            )
            for phase in PHASES
        },
        crossing_bytes=_crossing_bytes(graph, chain, workload),
        num_decode_steps=workload.new_tokens - 1 if graph.generates else 0,
        engines=engines,
        buffers=runtime_model.buffers(graph, profile, workload, execution),
        communication_s=runtime_model.communication_s(graph, profile, workload, execution),
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


def _engines(profile: HardwareProfile, workload: Workload, execution: ExecutionConfig) -> dict[str, Engine]:
    engines = {}
    if execution.main != "cpu" and profile.gpu is not None:
        engines[GPU] = gpu_engine(profile.gpu, workload.dtype)
    if execution.main == "cpu" or execution.cpu_execution:
        engines[CPU] = cpu_engine(profile.host, workload.dtype)
    return engines


def _price_units(
    units: tuple[Unit, ...],
    engines: dict[str, Engine],
    workload: Workload,
    contexts: Contexts,
    profile: HardwareProfile,
    runtime_model: RuntimeModel,
) -> tuple[UnitPrice, ...]:
    """Price each structure once; its twins differ in names only."""
    first: dict[bytes, UnitPrice] = {}
    result = []
    for unit in units:
        twin = first.get(unit.key)
        if twin is None:
            first[unit.key] = twin = _price_unit(unit, engines, workload, contexts, profile, runtime_model)
        result.append(_renamed(twin, unit) if twin.unit is not unit else twin)
    return tuple(result)


def _renamed(twin: UnitPrice, unit: Unit) -> UnitPrice:
    leaves = zip(unit.leaves, twin.leaves, strict=True)
    return replace(twin, unit=unit, leaves=tuple(replace(priced, leaf=leaf) for leaf, priced in leaves))


def _price_unit(
    unit: Unit,
    engines: dict[str, Engine],
    workload: Workload,
    contexts: Contexts,
    profile: HardwareProfile,
    runtime_model: RuntimeModel,
) -> UnitPrice:
    itemsize = workload.itemsize_bytes
    weights = {
        module.name: sum(t.num_bytes(itemsize) for t in owned if t.tensor.kind == "parameter")
        for leaf in unit.leaves
        for module, owned in zip(leaf.modules, leaf.tensors, strict=True)
    }
    hooked = [n for n in unit.nodes if runtime_model.hooks_on == "modules" or n.name in weights]
    hook_s = runtime_model.hook(profile).value * sum(n.num_calls for n in hooked)
    return UnitPrice(
        unit=unit,
        work={
            kind: {
                phase: _work(unit.nodes, weights, engine, phase, workload, contexts, profile, hook_s=hook_s)
                for phase in PHASES
            }
            for kind, engine in engines.items()
        },
        kv={phase: sum(kv_bytes(n, workload, contexts.last(phase)) for n in unit.nodes) for phase in PHASES},
        peak={
            phase: largest(peak_bytes(n, phase, workload, contexts.last(phase)) for n in unit.nodes)
            for phase in PHASES
        },
        buffer_bytes=sum(leaf.buffer_bytes(itemsize) for leaf in unit.leaves),
        leaves=tuple(_price_leaf(leaf, weights, workload, contexts) for leaf in unit.leaves),
    )


def _price_leaf(leaf: Leaf, weights: dict[str, int], workload: Workload, contexts: Contexts) -> LeafPrice:
    parameters = [t for owned in leaf.tensors for t in owned if t.tensor.kind == "parameter"]
    live = {phase: {m.name: _live(m, phase, workload, contexts) for m in leaf.modules} for phase in PHASES}
    return LeafPrice(
        leaf=leaf,
        stored_bytes=leaf.stored_bytes(workload.itemsize_bytes),
        moved_bytes=sum(t.num_bytes(workload.itemsize_bytes) for t in parameters),
        num_tensors=len(parameters),
        forwards={
            phase: largest(m.num_calls for m in leaf.modules if found[m.name] is not None)
            for phase, found in live.items()
        },
        streamed_peak={
            phase: largest(peak + weights[name] for name, peak in found.items() if peak is not None)
            for phase, found in live.items()
        },
        streamable=all(m.num_calls > 0 for m in leaf.modules),
    )


def _live(node: Node, phase: str, workload: Workload, contexts: Contexts) -> int | None:
    """Activations while a module's own code runs; None where it has none."""
    cost = phase_cost(node, phase, workload)
    if cost is None or cost.num_ops == 0:
        return None
    return peak_bytes(node, phase, workload, contexts.last(phase))


def _restaged(unit: UnitPrice, peaks: Mapping[str, Mapping[str, int]]) -> UnitPrice:
    """The unit as a runtime stages it that fetches ahead: see `RuntimeModel.streamed_peaks`."""
    leaves = []
    for leaf in unit.leaves:
        found = [peaks[module.name] for module in leaf.leaf.modules if module.name in peaks]
        worst = {phase: largest(one[phase] for one in found) for phase in PHASES}
        leaves.append(replace(leaf, streamed_peak=worst))
    return replace(unit, leaves=tuple(leaves))


def _work(
    nodes: tuple[Node, ...],
    weights: dict[str, int],
    engine: Engine,
    phase: str,
    workload: Workload,
    contexts: Contexts,
    profile: HardwareProfile,
    *,
    hook_s: float,
) -> UnitWork:
    context = contexts.typical(phase)
    return UnitWork(
        kernel_s=sum(
            kernel_s(n, engine, phase, workload, context=context, weight_bytes=weights.get(n.name, 0))
            for n in nodes
        ),
        dispatch_s=sum(dispatch_s(n, profile, phase, workload) for n in nodes),
        hook_s=hook_s,
        asynchronous=engine.asynchronous,
    )


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
