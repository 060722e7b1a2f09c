"""A model priced for one machine, one workload and one way to run: what every choice costs.

Pure numbers. `planner.evaluate` sums them for one assignment, `planner.search` finds the best one.
"""

from dataclasses import dataclass, replace

from planner.breakdown import PHASES, TimeBreakdown
from planner.graph.schema import ModuleGraph, Node
from planner.hardware.schema import HardwareProfile
from planner.memory import kv_bytes, largest, peak_bytes, phase_cost, self_context
from planner.runtimes.base import Law, Movement, Settings
from planner.sources import Quantity
from planner.time import Engine, copy_s, cpu_engine, dispatch_s, gpu_engine, kernel_s
from planner.units import Chain, Leaf, Unit
from planner.workload import Workload

#: Where a leaf can live, given where its unit executes: the device itself, or a place to stream from.
GPU, CPU, DISK = "gpu", "cpu", "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Host and device work of one unit in one phase: the device runs behind the host, or is it.

    Attributes:
        kernel_s: time on the engine.
        dispatch_s: host time to issue it.
        hook_s: host time of the runtime's hooks.
        asynchronous: whether the longer of the two hides the other.
    """

    kernel_s: float
    dispatch_s: float
    hook_s: float
    asynchronous: bool

    def time(self, *, hooked: bool) -> TimeBreakdown:
        """As a breakdown: what the host does beyond the kernels is overhead."""
        host = self.dispatch_s + (self.hook_s if hooked else 0.0)
        overhead = max(0.0, host - self.kernel_s) if self.asynchronous else host
        return TimeBreakdown(compute=self.kernel_s, host_overhead=overhead)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPrice:
    """One entry of the device map.

    Attributes:
        leaf: which.
        stored_bytes: what it takes where it lives.
        moved_bytes: what one forward brings to the device when it is streamed (a tied tensor each time).
        num_tensors: how many copies that is.
        forwards: forwards of it in each phase.
        streamed_peak: phase → live activations plus its own staged module, at the worst.
        streamable: False when the model uses its tensors without calling it: no hook would fetch them.
    """

    leaf: Leaf
    stored_bytes: int
    moved_bytes: int
    num_tensors: int
    forwards: dict[str, int]
    streamed_peak: dict[str, int]
    staging_bytes: int
    streamable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """One unit of the chain.

    Attributes:
        unit: which.
        spans: (`gpu` or `cpu`) → phase → work.
        kv: phase → cache bytes at the phase's end.
        peak: phase → live activation bytes while it runs.
        buffer_bytes: buffers; they stay where it executes.
        leaves: its entries.
    """

    unit: Unit
    spans: dict[str, dict[str, Span]]
    kv: dict[str, int]
    peak: dict[str, int]
    buffer_bytes: int
    leaves: tuple[LeafPrice, ...]

    @property
    def stored_bytes(self) -> int:
        """Weights of all its leaves."""
        return sum(leaf.stored_bytes for leaf in self.leaves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything a search or an evaluation needs.

    Attributes:
        units: priced, in execution order.
        glue: phase → work of modules outside every unit, on the main device.
        glue_peak: phase → live activation bytes while that runs, sampling included.
        crossing_bytes: phase → bytes of the residual stream between two units.
        num_decode_steps: forwards after prefill.
        engines: what it was priced with.
    """

    graph: ModuleGraph
    profile: HardwareProfile
    workload: Workload
    settings: Settings
    law: Law
    units: tuple[UnitPrice, ...]
    glue: dict[str, Span]
    glue_peak: dict[str, int]
    crossing_bytes: dict[str, int]
    num_decode_steps: int
    engines: dict[str, Engine]

    @property
    def main_kind(self) -> str:
        """`gpu` or `cpu`."""
        return CPU if self.settings.main == "cpu" else GPU

    def weight(self, phase: str) -> int:
        """How many forwards of this phase one `generate()` makes."""
        return 1 if phase == "prefill" else self.num_decode_steps

    def movement(self, leaf: LeafPrice, lives: str, executes: str) -> Movement:
        """One forward's movement of a leaf's weights."""
        return self.law.movement(
            num_bytes=leaf.moved_bytes,
            num_tensors=leaf.num_tensors,
            lives=lives,
            executes=executes,
            settings=self.settings,
            profile=self.profile,
        )

    def kv_movement_s(self, unit: UnitPrice, phase: str) -> float:
        """Moving an offloaded cache: out after each append, and back in before each decode step."""
        out, back = self.profile.device_to_host, self.profile.host_to_device
        num_bytes = unit.kv[phase]
        if self.settings.kv_cache == "device" or out is None or back is None or num_bytes == 0:
            return 0.0
        seconds = copy_s(num_bytes, out, pinned=True, num_copies=2)
        return seconds if phase == "prefill" else seconds + copy_s(num_bytes, back, pinned=True, num_copies=2)

    def crossing_s(self, phase: str) -> float:
        """Taking the residual stream to the CPU and back, for one unit that executes there."""
        out, back = self.profile.device_to_host, self.profile.host_to_device
        if out is None or back is None:
            return 0.0
        num_bytes = self.crossing_bytes[phase]
        return copy_s(num_bytes, out, pinned=False) + copy_s(num_bytes, back, pinned=False)

    def quantities(self, kind: str) -> tuple[Quantity, ...]:
        """Numbers behind any work on this kind of device."""
        host = self.profile.host
        return (*self.engines[kind].quantities, host.op_overhead_s)


def price(
    graph: ModuleGraph,
    chain: Chain,
    profile: HardwareProfile,
    workload: Workload,
    settings: Settings,
    law: Law,
) -> Problem:
    """Price a model for one machine, workload and way to run.

    Raises:
        InvalidInputError: the device does not run the workload's dtype.
    """
    engines = _engines(profile, workload, settings)
    main = CPU if settings.main == "cpu" else GPU
    contexts = Contexts.of(graph, workload)
    glue = {
        phase: _span(chain.glue, {}, engines[main], phase, workload, contexts, profile, hooked=False)
        for phase in PHASES
    }
    return Problem(
        graph=graph,
        profile=profile,
        workload=workload,
        settings=settings,
        law=law,
        units=_price_units(chain.units, engines, workload, contexts, profile),
        glue=glue,
        glue_peak={
            phase: largest(peak_bytes(n, phase, workload, contexts.last(phase)) for n in chain.glue)
            for phase in PHASES
        },
        crossing_bytes=_crossing_bytes(graph, chain, workload),
        num_decode_steps=workload.new_tokens - 1 if graph.generates else 0,
        engines=engines,
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


def _engines(profile: HardwareProfile, workload: Workload, settings: Settings) -> dict[str, Engine]:
    engines = {}
    if settings.main != "cpu" and profile.gpu is not None:
        engines[GPU] = gpu_engine(profile.gpu, workload.dtype)
    if settings.main == "cpu" or settings.cpu_execution:
        engines[CPU] = cpu_engine(profile.host, workload.dtype)
    return engines


def _price_units(
    units: tuple[Unit, ...],
    engines: dict[str, Engine],
    workload: Workload,
    contexts: Contexts,
    profile: HardwareProfile,
) -> tuple[UnitPrice, ...]:
    """Price each structure once; its twins differ in names only."""
    first: dict[bytes, UnitPrice] = {}
    result = []
    for unit in units:
        twin = first.get(unit.key)
        if twin is None:
            first[unit.key] = twin = _price_unit(unit, engines, workload, contexts, profile)
        result.append(_renamed(twin, unit) if twin.unit is not unit else twin)
    return tuple(result)


def _renamed(twin: UnitPrice, unit: Unit) -> UnitPrice:
    leaves = zip(unit.leaves, twin.leaves, strict=True)
    return replace(twin, unit=unit, leaves=tuple(replace(priced, leaf=leaf) for leaf, priced in leaves))


def _price_unit(
    unit: Unit, engines: dict[str, Engine], workload: Workload, contexts: Contexts, profile: HardwareProfile
) -> UnitPrice:
    itemsize = workload.itemsize_bytes
    weights = {
        module.name: sum(t.num_bytes(itemsize) for t in owned if t.tensor.kind == "parameter")
        for leaf in unit.leaves
        for module, owned in zip(leaf.modules, leaf.tensors, strict=True)
    }
    return UnitPrice(
        unit=unit,
        spans={
            kind: {
                phase: _span(unit.nodes, weights, engine, phase, workload, contexts, profile, hooked=True)
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

    def runs(module: Node, phase: str) -> bool:
        cost = phase_cost(module, phase, workload)
        return cost is not None and cost.num_ops > 0

    forwards = {
        phase: max((m.num_calls for m in leaf.modules if runs(m, phase)), default=0) for phase in PHASES
    }
    return LeafPrice(
        leaf=leaf,
        stored_bytes=leaf.stored_bytes(workload.itemsize_bytes),
        moved_bytes=sum(t.num_bytes(workload.itemsize_bytes) for t in parameters),
        num_tensors=len(parameters),
        forwards=forwards,
        streamed_peak={
            phase: largest(
                peak_bytes(m, phase, workload, contexts.last(phase)) + weights[m.name]
                for m in leaf.modules
                if runs(m, phase)
            )
            for phase in PHASES
        },
        staging_bytes=largest(weights[m.name] for m in leaf.modules),
        streamable=all(m.num_calls > 0 for m in leaf.modules),
    )


def _span(
    nodes: tuple[Node, ...],
    weights: dict[str, int],
    engine: Engine,
    phase: str,
    workload: Workload,
    contexts: Contexts,
    profile: HardwareProfile,
    *,
    hooked: bool,
) -> Span:
    context = contexts.typical(phase)
    hook = profile.host.hook_overhead_s.value if hooked else 0.0
    return Span(
        kernel_s=sum(
            kernel_s(n, engine, phase, workload, context=context, weight_bytes=weights.get(n.name, 0))
            for n in nodes
        ),
        dispatch_s=sum(dispatch_s(n, profile, phase, workload) for n in nodes),
        hook_s=sum(hook * n.num_calls for n in nodes if n.name in weights),
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
