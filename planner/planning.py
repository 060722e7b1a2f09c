"""From a model, a machine and a request to a plan: price every way, choose, say why."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from planner.errors import InfeasibleError, InvalidInputError
from planner.evaluate import predict
from planner.graph.network import placement_units
from planner.graph.schema import ModuleGraph
from planner.hardware.schema import HardwareProfile
from planner.plan import SCHEMA_VERSION, Alternative, ModelRef, Placement, Plan
from planner.pricing import price
from planner.problem import Problem
from planner.request import Request
from planner.runtimes.base import Law, Settings
from planner.runtimes.registry import laws
from planner.search.best import Candidate, best_batch, best_placement, nearest_placement
from planner.sizes import format_bytes, format_seconds
from planner.units import Chain, chain_of
from planner.workload import BATCH_LADDER

#: Families with `_keep_in_fp32_modules`: loaded in float16, some of their weights are float32 all the same.
KEEP_FLOAT32: Final = frozenset({"t5", "mt5", "umt5"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as a plan needs it: its name, how to load it, and its graph.

    Attributes:
        name: what the user typed.
        auto_class: `causal-lm`, `seq2seq-lm` or `masked-lm`.
        dtype: what its checkpoint is saved in, or None.
        graph: traced.
    """

    name: str
    auto_class: str
    dtype: str | None
    graph: ModuleGraph

    def ref(self) -> ModelRef:
        """As a plan records it."""
        by_name = {node.name: node.class_name for node in self.graph.nodes}
        return ModelRef(
            name=self.name,
            auto_class=self.auto_class,
            model_class=self.graph.model_class,
            config_sha256=self.graph.config_sha256,
            num_parameters=self.graph.num_parameters,
            no_split=tuple(sorted({by_name[b] for b in self.graph.blocks if b in by_name})),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """The best of one way to run the model."""

    settings: Settings
    dtype: str
    candidate: Candidate
    too_slow: bool = False


def make_plan(model: Model, profile: HardwareProfile, request: Request) -> Plan:
    """The best plan.

    Raises:
        InfeasibleError: nothing fits; carries the smallest deficit.
        InvalidInputError: the request cannot apply to this model or machine.
    """
    _check(model, profile, request)
    chain = chain_of(model.graph, placement_units(model.graph))
    contenders = list(_contenders(model, chain, profile, request))
    if not contenders:
        raise InvalidInputError(_nothing_to_price(profile, request))
    fitting = [c for c in contenders if c.candidate.fits and not c.too_slow]
    if not fitting:
        raise _infeasible(contenders, request)
    winner = min(fitting, key=lambda c: _badness(c, request))
    losers = _distinct([winner, *(c for c in contenders if c is not winner)])[1:]
    return _plan(model, profile, request, winner, losers)


def plan_of(
    model: Model,
    candidate: Candidate,
    *,
    objective: str,
    alternatives: tuple[Alternative, ...] = (),
    notes: tuple[str, ...] = (),
) -> Plan:
    """A candidate as a plan, with its prediction."""
    problem = candidate.problem
    return Plan(
        schema_version=SCHEMA_VERSION,
        tool_version=metadata.version("offload-planner"),
        model=model.ref(),
        hardware=problem.profile,
        workload=problem.workload,
        objective=objective,
        runtime=problem.settings.runtime,
        host_copies=problem.settings.host_copies,
        kv_cache=problem.settings.kv_cache,
        main_device=problem.settings.main,
        placements=placements_of(candidate),
        split_blocks=split_blocks_of(candidate),
        prediction=predict(problem, candidate.assignment),
        alternatives=alternatives,
        notes=notes,
    )


def placements_of(candidate: Candidate) -> tuple[Placement, ...]:
    """Every leaf with its place, in execution order."""
    assignment = candidate.assignment
    return tuple(
        Placement(module=entry, lives=place, executes=executes, num_bytes=0 if number else leaf.stored_bytes)
        for unit, executes, lives in zip(
            candidate.problem.units, assignment.executes, assignment.lives, strict=True
        )
        for leaf, place in zip(unit.leaves, lives, strict=True)
        for number, entry in enumerate(leaf.leaf.entries)
        if entry
    )


def split_blocks_of(candidate: Candidate) -> dict[str, str]:
    """Blocks whose leaves live apart, with the device they execute on."""
    assignment = candidate.assignment
    return {
        unit.unit.name: executes
        for unit, executes, lives in zip(
            candidate.problem.units, assignment.executes, assignment.lives, strict=True
        )
        if unit.unit.is_block and len(set(lives)) > 1
    }


def _contenders(
    model: Model, chain: Chain, profile: HardwareProfile, request: Request
) -> Iterable[Contender]:
    for dtype in dtypes_for(model, profile, request):
        for law in laws(request.runtimes):
            for settings in law.settings(profile):
                if law.name == "cpu" and dtype not in profile.host.flops_per_s:
                    continue
                yield _contender(model, chain, profile, request, law, settings, dtype)


def dtypes_for(model: Model, profile: HardwareProfile, request: Request) -> tuple[str, ...]:
    """The dtypes to price; never one whose memory the graph does not know."""
    wanted = request.dtypes(profile, model.dtype)
    if model.graph.model_type not in KEEP_FLOAT32 or "float16" not in wanted:
        return wanted
    if request.dtype == "float16":
        raise InvalidInputError(
            f"in float16 transformers keeps parts of {model.name} in float32, which no plan counts; "
            f"use --dtype bfloat16 or float32"
        )
    rates = profile.gpu.flops_per_s if profile.gpu is not None else profile.host.flops_per_s
    others = tuple(dtype for dtype in wanted if dtype != "float16")
    return others or (("bfloat16",) if "bfloat16" in rates else ("float32",))


def _contender(
    model: Model,
    chain: Chain,
    profile: HardwareProfile,
    request: Request,
    law: Law,
    settings: Settings,
    dtype: str,
) -> Contender:
    workload = request.workload(dtype)

    def problem_at(batch_size: int) -> Problem:
        return price(model.graph, chain, profile, workload.with_batch(batch_size), settings, law)

    def solve_at(batch_size: int) -> Candidate | None:
        return best_placement(problem_at(batch_size))

    if request.batch_size is None and request.objective != "latency":
        ladder = [batch for batch in BATCH_LADDER if batch >= request.min_batch]
        best = best_batch(solve_at, ladder, max_latency_s=request.max_latency_s)
        if best is not None:
            return Contender(settings=settings, dtype=dtype, candidate=best)
    only = solve_at(workload.batch_size) or nearest_placement(problem_at(workload.batch_size))
    limit = request.max_latency_s
    return Contender(
        settings=settings,
        dtype=dtype,
        candidate=only,
        too_slow=limit is not None and only.fits and only.total_s > limit,
    )


def _distinct(contenders: list[Contender]) -> list[Contender]:
    """Without the ways that come out as one before them: pinned and pageable, when nothing is streamed."""
    seen = set()
    result = []
    for one in contenders:
        candidate = one.candidate
        key = (
            candidate.assignment,
            candidate.batch_size,
            candidate.total_s,
            candidate.fits,
            one.dtype,
            one.settings.kv_cache,
        )
        if key not in seen:
            seen.add(key)
            result.append(one)
    return result


def _check(model: Model, profile: HardwareProfile, request: Request) -> None:
    graph = model.graph
    total = request.prompt_tokens + (request.new_tokens if not graph.is_encoder_decoder else 0)
    if graph.max_positions is not None and graph.generates and total > graph.max_positions:
        raise InvalidInputError(
            f"{model.name} takes sequences of up to {graph.max_positions} tokens; a prompt of "
            f"{request.prompt_tokens} and {request.new_tokens} new tokens are {total}"
        )
    if request.objective == "cost" and profile.usd_per_hour is None:
        raise InvalidInputError(
            f"profile {profile.name!r} has no price, so cost cannot be the objective; choose an instance "
            f"such as g5.xlarge, or add usd_per_hour to a profile of your own"
        )


def _badness(contender: Contender, request: Request) -> float:
    """What the objective minimises; a price per hour is the same for all on one machine."""
    total_s = contender.candidate.total_s
    return total_s if request.objective == "latency" else total_s / contender.candidate.batch_size


def _plan(
    model: Model,
    profile: HardwareProfile,
    request: Request,
    winner: Contender,
    losers: list[Contender],
) -> Plan:
    alternatives = tuple(
        _alternative(loser, winner, request)
        for loser in sorted(losers, key=lambda c: (not c.candidate.fits, _badness(c, request)))
    )
    return plan_of(
        model,
        winner.candidate,
        objective=request.objective,
        alternatives=alternatives,
        notes=_notes(model, winner),
    )


def _alternative(loser: Contender, winner: Contender, request: Request) -> Alternative:
    candidate = loser.candidate
    label = loser.settings.label if loser.dtype == winner.dtype else f"{loser.settings.label}, {loser.dtype}"
    if not candidate.fits:
        device, lacking = max(candidate.shortage_bytes.items(), key=lambda item: item[1])
        return Alternative(
            label=label,
            batch_size=candidate.batch_size,
            fits=False,
            deficit_bytes=lacking,
            deficit_device=device,
            reason=f"{format_bytes(lacking)} short on {device}",
        )
    prediction = predict(candidate.problem, candidate.assignment)
    return Alternative(
        label=label,
        batch_size=candidate.batch_size,
        fits=True,
        prefill_s=prediction.time["prefill"].total,
        decode_s=prediction.time["decode"].total,
        tokens_per_s=prediction.tokens_per_s,
        reason=_why_lost(loser, winner, request),
    )


def _why_lost(loser: Contender, winner: Contender, request: Request) -> str:
    if loser.too_slow:
        return f"takes {format_seconds(loser.candidate.total_s)}, over the limit"
    best = _badness(winner, request)
    ratio = _badness(loser, request) / best if best > 0 else 1.0
    if ratio < 1.001:
        return "as fast; the chosen one is simpler"
    what = {"latency": "slower", "throughput": "fewer tokens/s", "cost": "dearer"}[request.objective]
    if request.objective == "throughput":
        return f"{100 * (1 - 1 / ratio):.0f} % {what}"
    return f"{ratio:.2f}× {what}" if ratio >= 1.1 else f"{100 * (ratio - 1):.1f} % {what}"


def _notes(model: Model, winner: Contender) -> tuple[str, ...]:
    notes = list(model.graph.leaks)
    assignment = winner.candidate.assignment
    if winner.settings.main != "cpu" and "cpu" in assignment.executes:
        notes.append(
            "some blocks execute on the CPU: generate.py does that; device_map.json alone streams them to "
            "the GPU instead, which is slower and needs their KV cache there"
        )
    return tuple(notes)


def _infeasible(contenders: list[Contender], request: Request) -> InfeasibleError:
    slow = [c for c in contenders if c.candidate.fits]
    if slow:
        fastest = min(slow, key=lambda c: c.candidate.total_s)
        return InfeasibleError(
            f"nothing finishes within {format_seconds(request.max_latency_s or 0.0)}: the fastest, "
            f"{fastest.settings.label} at batch {fastest.candidate.batch_size}, takes "
            f"{format_seconds(fastest.candidate.total_s)}",
            device="",
            deficit_bytes=0,
        )
    nearest = min(contenders, key=lambda c: sum(c.candidate.shortage_bytes.values()))
    shortages = nearest.candidate.shortage_bytes
    device, lacking = max(shortages.items(), key=lambda item: item[1])
    words = " and ".join(f"{format_bytes(n)} on {d}" for d, n in sorted(shortages.items()))
    workload = nearest.candidate.problem.workload
    return InfeasibleError(
        f"does not fit at batch {workload.batch_size} with {workload.prompt_tokens} + "
        f"{workload.new_tokens} tokens in {nearest.dtype}: the nearest way, {nearest.settings.label}, "
        f"lacks {words}",
        device=device,
        deficit_bytes=lacking,
    )


def _nothing_to_price(profile: HardwareProfile, request: Request) -> str:
    asked = ", ".join(request.runtimes or ())
    return f"no way to run {asked or 'anything'} on {profile.name!r}: it has {profile.num_gpus} GPUs"
