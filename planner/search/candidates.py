"""Every way to run a model on a machine, each at its best: what a plan is chosen from. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from planner.cost.build_problem import price
from planner.cost.placement_units import chain_of
from planner.cost.problem import Problem
from planner.cost.runtime_model import Scenario
from planner.errors import InvalidInputError
from planner.graph.groups import placement_units
from planner.graph.model import Model
from planner.runtimes.registry import runtime_models
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.request import ANY_DTYPE, Request
from planner.schema.workload import BATCH_LADDER, DTYPE_BYTES
from planner.search.best_placement import PricedPlacement, best_batch, best_placement, nearest_placement

#: Families with `_keep_in_fp32_modules`: loaded in float16, some of their weights are float32 all the same.
KEEP_FLOAT32: Final = frozenset({"t5", "mt5", "umt5"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The best of one way to run the model.

    Attributes:
        priced: the placement, and whether it fits.
        too_slow: it fits, and takes longer than the request allows.
    """

    priced: PricedPlacement
    too_slow: bool = False

    @property
    def execution(self) -> ExecutionConfig:
        """The way."""
        return self.priced.problem.scenario.execution

    @property
    def dtype(self) -> str:
        """What everything is in."""
        return self.priced.problem.scenario.workload.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A runtime that cannot run the model on the machine, and why.

    Attributes:
        runtime: its name.
        label: the way, or the runtime's name when it has none here.
        reason: a clause.
    """

    runtime: str
    label: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """All that was considered."""

    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]


def evaluate_all(model: Model, profile: HardwareProfile, request: Request) -> SearchResult:
    """Price every configuration that the request allows, each at its best.

    Args:
        model: what is run.
        profile: the machine.
        request: what is asked.

    Raises:
        InvalidInputError: the request cannot apply to this model or machine.
        UnknownNameError: an unknown runtime.
    """
    chain = chain_of(model.graph, placement_units(model.graph))
    found = [
        _considered(
            Scenario.whole(
                model.graph, profile, request.workload(dtype), execution, runtime_model, chain=chain
            ),
            request,
        )
        for dtype in dtypes_for(model, profile, request)
        for runtime_model in runtime_models(request.runtimes)
        for execution in runtime_model.configurations(profile)
        if execution.weight_bits == request.weight_bits
    ]
    absent = [
        Refusal(runtime=runtime_model.name, label=runtime_model.name, reason=runtime_model.absent(profile))
        for runtime_model in runtime_models(request.runtimes)
        if not runtime_model.configurations(profile)
    ]
    candidates = tuple(one for one in found if isinstance(one, Candidate))
    refused = [one for one in found if isinstance(one, Refusal)]
    return SearchResult(candidates=candidates, refusals=(*refused, *absent))


def dtypes_for(model: Model, profile: HardwareProfile, request: Request) -> tuple[str, ...]:
    """The dtypes to price; never one whose memory the graph does not know."""
    wanted = request.dtypes(profile, model.dtype)
    if model.graph.model_type not in KEEP_FLOAT32 or "float16" not in wanted:
        return wanted
    if request.dtype == "float16":
        raise InvalidInputError(
            f"in float16 transformers keeps parts of {model.name} in float32, which no plan counts; "
            f"use `dtype=bfloat16` or float32"
        )
    others = tuple(dtype for dtype in wanted if dtype != "float16")
    return others or (("bfloat16",) if "bfloat16" in profile.native_flops_per_s else ("float32",))


def dtype_for(model: Model, profile: HardwareProfile, asked: str | None) -> str:
    """The dtype of what is run as it is given: what was asked for, or the model's own where it runs.

    Raises:
        InvalidInputError: any was asked for; or as `dtypes_for`.
    """
    if asked == ANY_DTYPE:
        raise InvalidInputError(
            f"`dtype={ANY_DTYPE}` is for what is planned; name one of {', '.join(DTYPE_BYTES)}"
        )
    return dtypes_for(model, profile, Request(dtype=asked))[0]


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Without the ways that come out as one before them: pinned and pageable, when nothing is streamed."""
    seen = set()
    result = []
    for one in candidates:
        priced = one.priced
        key = (
            one.execution.runtime,
            one.execution.num_ranks,
            priced.assignment,
            priced.batch_size,
            priced.total_s,
            priced.fits,
            one.dtype,
            one.execution.kv_cache,
        )
        if key not in seen:
            seen.add(key)
            result.append(one)
    return result


def _considered(whole: Scenario, request: Request) -> Candidate | Refusal:
    """One configuration; `whole` is its scenario at the smallest batch in question."""
    profile, dtype, execution = whole.profile, whole.workload.dtype, whole.execution
    reason = None
    if execution.main == "cpu" and dtype not in profile.host.flops_per_s:
        reason = f"the CPU of {profile.name} has no rate for {dtype}"
    reason = reason or whole.runtime_model.why_not(whole)
    if reason is not None:
        return Refusal(runtime=whole.runtime_model.name, label=execution.label, reason=reason)
    return _best_of(whole.of_one_rank(), request)


def _best_of(scenario: Scenario, request: Request) -> Candidate:
    """The best placement of one configuration, at the batch asked for or the best of the ladder."""
    smallest = scenario.workload.batch_size

    def problem_at(batch_size: int) -> Problem:
        """With so many sequences in each stream."""
        total = scenario.num_sequences if request.batch_size is not None else None
        return price(scenario.with_batch(batch_size, num_sequences=total))

    def solve_at(batch_size: int) -> PricedPlacement | None:
        return best_placement(problem_at(batch_size))

    if request.batch_size is None and request.objective != "latency":
        ladder = [batch for batch in BATCH_LADDER if batch >= smallest]
        best = best_batch(solve_at, ladder, max_latency_s=request.max_latency_s)
        if best is not None:
            return Candidate(priced=best)
    only = solve_at(smallest) or nearest_placement(problem_at(smallest))
    limit = request.max_latency_s
    return Candidate(
        priced=only,
        too_slow=limit is not None and only.fits and only.total_s > limit,
    )
