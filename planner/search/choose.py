"""From a model, a machine and a request to a plan: price every way, choose, say why."""

from collections.abc import Iterator
from importlib import metadata
from typing import Final

from planner.cost.predict import predict
from planner.errors import InvalidInputError
from planner.graph.model import Model
from planner.runtimes.registry import LAWS
from planner.schema.hardware import HardwareProfile
from planner.schema.plan import SCHEMA_VERSION, Alternative, Placement, Plan
from planner.schema.request import Request
from planner.search.alternatives import alternatives_to, badness, infeasible, label_of
from planner.search.best_placement import Candidate
from planner.search.candidates import Contender, Field, field_of

#: Two ways whose objective differs by less are the same as far as an estimate goes: steps are predicted
#: within about 10 % in the median, and errors of ways on one machine go together.
_CLOSE: Final = 1.05


def make_plan(model: Model, profile: HardwareProfile, request: Request) -> Plan:
    """The best plan; raises as `choose` does."""
    plan, _ = choose(model, profile, request)
    return plan


def choose(model: Model, profile: HardwareProfile, request: Request) -> tuple[Plan, Candidate]:
    """The best plan, and the priced candidate that it records.

    Raises:
        InfeasibleError: nothing fits; carries the smallest deficit.
        InvalidInputError: the request cannot apply to this model or machine.
    """
    _check(model, profile, request)
    field = field_of(model, profile, request)
    if not field.contenders:
        raise InvalidInputError(_nothing_to_price(profile, request, field))
    fitting = [c for c in field.contenders if c.candidate.fits and not c.too_slow]
    if not fitting:
        raise infeasible(field, request)
    winner = min(_choosable(fitting, request), key=lambda c: badness(c, request))
    plan = plan_of(
        model,
        winner.candidate,
        objective=request.objective,
        alternatives=alternatives_to(winner, field, request),
        notes=_notes(model, winner, fitting, request),
    )
    return plan, winner.candidate


def _choosable(fitting: list[Contender], request: Request) -> list[Contender]:
    """Without runtimes that need an environment of their own, unless they were named or nothing else fits."""
    if request.runtimes is not None:
        return fitting
    return [c for c in fitting if not c.candidate.problem.law.own_environment] or fitting


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
        workload=problem.workload.with_batch(problem.num_sequences),
        objective=objective,
        runtime=problem.settings.runtime,
        label=label_of(candidate),
        host_copies=problem.settings.host_copies,
        kv_cache=problem.settings.kv_cache,
        main_device=problem.settings.main,
        placements=placements_of(candidate),
        split_blocks=split_blocks_of(candidate),
        prediction=predict(problem, candidate.assignment),
        alternatives=alternatives,
        notes=notes,
        num_ranks=problem.settings.num_ranks,
        num_streams=problem.settings.num_streams,
        weight_bits=problem.settings.weight_bits,
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


def _check(model: Model, profile: HardwareProfile, request: Request) -> None:
    model.check_lengths(request.prompt_tokens, request.new_tokens)
    if request.objective == "cost" and profile.usd_per_hour is None:
        raise InvalidInputError(
            f"profile {profile.name!r} has no price, so cost cannot be the objective; choose an instance "
            f"such as g5.xlarge, or add usd_per_hour to a profile of your own"
        )


def _notes(model: Model, winner: Contender, fitting: list[Contender], request: Request) -> tuple[str, ...]:
    notes = list(model.graph.leaks)
    assignment = winner.candidate.assignment
    if winner.settings.main != "cpu" and "cpu" in assignment.executes:
        notes.append(
            "some blocks execute on the CPU: generate.py does that; device_map.json alone streams them to "
            "the GPU instead, which is slower and needs their KV cache there"
        )
    used = {device for device in assignment.executes if device.startswith("gpu:")}
    if len(used) > winner.candidate.problem.profile.host_gpus:
        notes.append(f"one process drives {len(used)} GPUs here: they must be in one machine")
    return (*notes, *_faster_elsewhere(winner, fitting, request), *_as_good(winner, fitting, request))


def _faster_elsewhere(winner: Contender, fitting: list[Contender], request: Request) -> Iterator[str]:
    """Runtimes that would have won, had they been asked for."""
    names = dict.fromkeys(
        (c.settings.runtime, c.candidate.problem.law.own_environment)
        for c in fitting
        if badness(c, request) < badness(winner, request)
    )
    for name, needs in names:
        yield f"{name} is faster and needs an environment of its own ({needs}): --runtime {name} chooses it"


def _as_good(winner: Contender, fitting: list[Contender], request: Request) -> Iterator[str]:
    """The simplest runtime that loses by less than an estimate can tell apart."""
    if request.runtimes is not None:
        return
    order = list(LAWS)
    close = {c.settings.runtime for c in fitting if badness(c, request) < _CLOSE * badness(winner, request)}
    name = min({*close, winner.settings.runtime}, key=order.index)
    if name != winner.settings.runtime:
        within = f"{name} is within {100 * (_CLOSE - 1):.0f} % of {winner.settings.runtime}"
        yield f"{within}, closer than an estimate can tell, and needs less: --runtime {name} chooses it"


def _nothing_to_price(profile: HardwareProfile, request: Request, field: Field) -> str:
    asked = ", ".join(request.runtimes or ())
    reasons = dict.fromkeys(f"{one.label}: {one.reason}" for one in field.refusals)
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"no way to run {asked or 'anything'} on {profile.name!r}{why}"
