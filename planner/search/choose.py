"""From a model, a machine and a request to a plan: price every configuration, choose one, give reasons."""

from collections.abc import Iterator
from importlib import metadata
from typing import Final

from planner.cost.memory import kept_pages_max_tokens
from planner.cost.predict import predict
from planner.errors import InvalidInputError
from planner.graph.model import Model
from planner.runtimes.registry import RUNTIME_MODELS
from planner.schema.hardware import HardwareProfile
from planner.schema.plan import SCHEMA_VERSION, Alternative, Placement, Plan
from planner.schema.request import Request
from planner.search.alternatives import alternatives_to, infeasible, label_of, objective_value
from planner.search.best_placement import PricedPlacement
from planner.search.candidates import Candidate, SearchResult, evaluate_all

#: Ratio of two configurations' objectives below which the estimate cannot tell which is better: steps are
#: predicted within about 10 % in the median, and errors of configurations on one machine are correlated.
_INDISTINGUISHABLE_RATIO: Final = 1.05


def make_plan(model: Model, profile: HardwareProfile, request: Request) -> Plan:
    """The best plan.

    Args:
        model: the model to run.
        profile: the machine.
        request: workload, objective and limits.

    Raises:
        InfeasibleError: as for `choose_plan`.
        InvalidInputError: as for `choose_plan`.
    """
    plan, _ = choose_plan(model, profile, request)
    return plan


def choose_plan(model: Model, profile: HardwareProfile, request: Request) -> tuple[Plan, PricedPlacement]:
    """The best plan, and the priced placement that it records.

    Args:
        model: the model to run.
        profile: the machine.
        request: workload, objective and limits.

    Raises:
        InfeasibleError: nothing fits or finishes in time; the error has the smallest shortage.
        InvalidInputError: the request cannot apply to this model or machine.
    """
    _check(model, profile, request)
    result = evaluate_all(model, profile, request)
    if not result.candidates:
        raise InvalidInputError(_nothing_to_price(profile, request, result))
    fitting = [c for c in result.candidates if c.priced.fits and not c.too_slow]
    if not fitting:
        raise infeasible(result, request)
    winner = min(_choosable(fitting, request), key=lambda c: objective_value(c, request))
    plan = plan_of(
        model,
        winner.priced,
        request,
        alternatives=alternatives_to(winner, result, request),
        notes=_notes(model, winner, fitting, request),
    )
    return plan, winner.priced


def _choosable(fitting: list[Candidate], request: Request) -> list[Candidate]:
    """The candidates without runtimes that need an environment of their own.

    Those stay when the request names runtimes, or when nothing else fits.
    """
    if request.runtimes is not None:
        return fitting
    return [c for c in fitting if not c.priced.problem.scenario.runtime_model.own_environment] or fitting


def plan_of(
    model: Model,
    priced: PricedPlacement,
    request: Request,
    *,
    alternatives: tuple[Alternative, ...] = (),
    notes: tuple[str, ...] = (),
) -> Plan:
    """A placement as a plan, with its prediction.

    Args:
        model: the model that is placed.
        priced: the placement.
        request: the request that led to it.
        alternatives: the other configurations, with the reasons why they were not chosen.
        notes: sentences that a user should read, each without its final period.
    """
    problem = priced.problem
    scenario = problem.scenario
    prediction = predict(problem, priced.assignment)
    return Plan(
        schema_version=SCHEMA_VERSION,
        tool_version=metadata.version("offload-planner"),
        model=model.ref(),
        hardware=scenario.profile,
        request=request,
        workload=scenario.workload.with_batch(scenario.num_sequences),
        execution=scenario.execution,
        label=label_of(priced),
        placements=placements_of(priced),
        split_blocks=split_blocks_of(priced),
        prediction=prediction,
        kept_pages_max_tokens=kept_pages_max_tokens(problem, prediction.memory["cpu"]),
        alternatives=alternatives,
        notes=notes,
    )


def placements_of(priced: PricedPlacement) -> tuple[Placement, ...]:
    """Every entry of the device map with its place, in execution order."""
    assignment = priced.assignment
    return tuple(
        Placement(
            module=entry, stored_on=place, runs_on=runs_on, num_bytes=0 if number else leaf.stored_bytes
        )
        for unit, runs_on, stored_on in zip(
            priced.problem.units, assignment.runs_on, assignment.stored_on, strict=True
        )
        for leaf, place in zip(unit.leaves, stored_on, strict=True)
        for number, entry in enumerate(leaf.leaf.entries)
        if entry
    )


def split_blocks_of(priced: PricedPlacement) -> dict[str, str]:
    """Blocks whose leaves are stored in different places → the device that the block runs on."""
    assignment = priced.assignment
    return {
        unit.unit.name: runs_on
        for unit, runs_on, stored_on in zip(
            priced.problem.units, assignment.runs_on, assignment.stored_on, strict=True
        )
        if unit.unit.is_block and len(set(stored_on)) > 1
    }


def _check(model: Model, profile: HardwareProfile, request: Request) -> None:
    model.check_lengths(request.prompt_tokens, request.new_tokens)
    if request.objective == "cost" and profile.usd_per_hour is None:
        raise InvalidInputError(
            f"profile {profile.name!r} has no price, so cost cannot be the objective; choose an instance "
            f"such as g5.xlarge, or add usd_per_hour to a profile of your own"
        )


def _notes(model: Model, winner: Candidate, fitting: list[Candidate], request: Request) -> tuple[str, ...]:
    runtime_model = winner.priced.problem.scenario.runtime_model
    notes = [*model.graph.leaks, *runtime_model.notes(model.graph, winner.execution)]
    assignment = winner.priced.assignment
    if winner.execution.main != "cpu" and "cpu" in assignment.runs_on:
        notes.append(
            "some blocks execute on the CPU: generate.py does that; device_map.json alone streams them to "
            "the GPU instead, which is slower and needs their KV cache there"
        )
    used = {device for device in assignment.runs_on if device.startswith("gpu:")}
    if len(used) > winner.priced.problem.scenario.profile.host_gpus:
        notes.append(f"one process drives {len(used)} GPUs here: they must be in one machine")
    return (*notes, *_faster_by_name(winner, fitting, request), *_simpler(winner, fitting, request))


def _faster_by_name(winner: Candidate, fitting: list[Candidate], request: Request) -> Iterator[str]:
    """A note for each runtime that is faster than the winner, but is chosen by name only."""
    names = dict.fromkeys(
        (c.execution.runtime, c.priced.problem.scenario.runtime_model.own_environment)
        for c in fitting
        if objective_value(c, request) < objective_value(winner, request)
    )
    for name, needs in names:
        yield f"{name} is faster and needs an environment of its own ({needs}): `runtimes={name}` chooses it"


def _simpler(winner: Candidate, fitting: list[Candidate], request: Request) -> Iterator[str]:
    """A note for the simplest runtime whose difference to the winner is below the estimate's error."""
    if request.runtimes is not None:
        return
    order = list(RUNTIME_MODELS)
    close = {
        c.execution.runtime
        for c in fitting
        if objective_value(c, request) < _INDISTINGUISHABLE_RATIO * objective_value(winner, request)
    }
    name = min({*close, winner.execution.runtime}, key=order.index)
    if name != winner.execution.runtime:
        percent = 100 * (_INDISTINGUISHABLE_RATIO - 1)
        within = f"{name} is within {percent:.0f} % of {winner.execution.runtime}"
        yield f"{within}, closer than an estimate can tell, and simpler to run: `runtimes={name}` chooses it"


def _nothing_to_price(profile: HardwareProfile, request: Request, result: SearchResult) -> str:
    asked = ", ".join(request.runtimes or ())
    reasons = dict.fromkeys(f"{refusal.label}: {refusal.reason}" for refusal in result.refusals)
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"no configuration of {asked or 'any runtime'} can run on {profile.name!r}{why}"
