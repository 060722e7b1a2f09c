"""Every configuration that can run a model on a machine, each with its best placement and batch. Pure.

A plan is chosen from these candidates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from planner.cost.build_problem import price
from planner.cost.problem import Problem
from planner.cost.runtime_model import Scenario
from planner.errors import InvalidInputError
from planner.graph.model import Model
from planner.runtimes.registry import runtime_models
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.request import ANY_DTYPE, Request
from planner.schema.workload import BATCH_LADDER, DTYPE_BYTES
from planner.search.best_placement import PricedPlacement, best_batch, best_placement, nearest_placement

#: Model types with `_keep_in_fp32_modules`: when loaded in float16, some of their weights stay float32.
KEEP_FLOAT32: Final = frozenset({"t5", "mt5", "umt5"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration with its best placement and batch.

    Attributes:
        priced: the placement, and whether it fits.
        too_slow: it fits, but takes longer than the request allows.
    """

    priced: PricedPlacement
    too_slow: bool = False

    @property
    def execution(self) -> ExecutionConfig:
        """The configuration."""
        return self.priced.problem.scenario.execution

    @property
    def dtype(self) -> str:
        """The dtype of weights, activations and KV cache."""
        return self.priced.problem.scenario.workload.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A configuration or runtime that cannot run the model on the machine, and why.

    Attributes:
        runtime: name of the runtime.
        label: the configuration in words, or the runtime's name when it has no configuration on the machine.
        reason: why, as a clause.
    """

    runtime: str
    label: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """All configurations that were considered.

    Attributes:
        candidates: those that were priced, whether or not they fit.
        refusals: those that cannot run the model.
    """

    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]


def evaluate_all(model: Model, profile: HardwareProfile, request: Request) -> SearchResult:
    """Price every configuration that the request allows, each with its best placement and batch.

    Args:
        model: the model to run.
        profile: the machine.
        request: workload, objective and limits.

    Raises:
        InvalidInputError: the request cannot apply to this model or machine.
        UnknownNameError: the request names an unknown runtime.
    """
    considered = [
        _considered(
            Scenario.whole(model.graph, profile, request.workload(dtype), execution, runtime_model),
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
    candidates = tuple(result for result in considered if isinstance(result, Candidate))
    refused = [result for result in considered if isinstance(result, Refusal)]
    return SearchResult(candidates=candidates, refusals=(*refused, *absent))


def dtypes_for(model: Model, profile: HardwareProfile, request: Request) -> tuple[str, ...]:
    """The dtypes to price, the preferred one first; never float16 for models that keep weights in float32.

    Args:
        model: the model to run.
        profile: the machine; dtypes without a rate on it are left out, unless the request names one.
        request: gives the dtype that was asked for, if any.

    Raises:
        InvalidInputError: float16 was asked for, and the model keeps some weights in float32.
    """
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
    """The one dtype for a given device map or configuration, where there is no choice between dtypes.

    Args:
        model: the model to run.
        profile: the machine.
        asked: the dtype that was asked for; None for the model's own where the machine runs it.

    Raises:
        InvalidInputError: `any` was asked for; or as for `dtypes_for`.
    """
    if asked == ANY_DTYPE:
        raise InvalidInputError(
            f"`dtype={ANY_DTYPE}` is for plans only; name one of {', '.join(DTYPE_BYTES)}"
        )
    return dtypes_for(model, profile, Request(dtype=asked))[0]


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates without those that are equal to an earlier one in everything but their label.

    An example is pinned and pageable host copies when nothing is streamed.
    """
    seen = set()
    result = []
    for candidate in candidates:
        priced = candidate.priced
        key = (
            candidate.execution.runtime,
            candidate.execution.num_ranks,
            priced.assignment,
            priced.batch_size,
            priced.total_s,
            priced.fits,
            candidate.dtype,
            candidate.execution.kv_cache,
        )
        if key not in seen:
            seen.add(key)
            result.append(candidate)
    return result


def _considered(whole: Scenario, request: Request) -> Candidate | Refusal:
    """The candidate or refusal of one configuration; `whole` has the smallest batch that is asked for."""
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
        """The problem with `batch_size` sequences in each stream."""
        total = scenario.num_sequences if request.batch_size is not None else None
        return price(scenario.with_batch(batch_size, num_sequences=total))

    def solve_at(batch_size: int) -> PricedPlacement | None:
        return best_placement(problem_at(batch_size))

    if request.batch_size is None and request.objective != "latency":
        ladder = [batch for batch in BATCH_LADDER if batch >= smallest]
        best = best_batch(solve_at, ladder, max_latency_s=request.max_latency_s)
        if best is not None:
            return Candidate(priced=best)
    priced = solve_at(smallest) or nearest_placement(problem_at(smallest))
    limit = request.max_latency_s
    return Candidate(
        priced=priced,
        too_slow=limit is not None and priced.fits and priced.total_s > limit,
    )
