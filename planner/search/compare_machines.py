"""One model on several machines: what each would do, and what a million tokens would cost. Pure."""

from collections.abc import Iterable

import msgspec

from planner.errors import InfeasibleError, InvalidInputError
from planner.graph.model import Model
from planner.schema.hardware import HardwareProfile
from planner.schema.notebook import ShownInNotebook
from planner.schema.quantity import Source
from planner.schema.request import Request
from planner.search.choose import make_plan


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine would do.

    Attributes:
        hardware: the profile's name.
        fits: whether any way runs there.
        reason: why not, or empty.
        num_gpus: of the machine.
        runtime: the best way's, and `label` in words.
        num_ranks: its processes.
        dtype: what everything is in.
        batch_size: sequences together.
        prefill_s, decode_s, total_s: seconds of the phases and of the whole call.
        tokens_per_s: of all sequences.
        usd_per_hour: on demand, or None where the profile has no price.
        price_note: where the price is from, with its date.
        usd_per_million_tokens: or None without a price.
        source: the weakest source of any number in the prediction.
    """

    hardware: str
    fits: bool
    num_gpus: int
    reason: str = ""
    runtime: str = ""
    label: str = ""
    num_ranks: int = 1
    dtype: str = ""
    batch_size: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    total_s: float = 0.0
    tokens_per_s: float = 0.0
    usd_per_hour: float | None = None
    price_note: str = ""
    usd_per_million_tokens: float | None = None
    source: Source = Source.MEASURED


class Machines(tuple[Machine, ...], ShownInNotebook):
    """What each of several machines would do, the best first."""

    __slots__ = ()


def compare_machines(model: Model, profiles: Iterable[HardwareProfile], request: Request) -> Machines:
    """Plan the model on each machine; the best by the objective first, what cannot run it last.

    With the objective `cost` a machine without a price is listed with that reason.

    Raises:
        InvalidInputError: no machine is given, or the request makes no sense on any of them.
    """
    found: list[Machine] = []
    refused: list[InvalidInputError] = []
    for profile in profiles:
        try:
            found.append(_on(model, profile, request))
        except InvalidInputError as error:
            refused.append(error)
            found.append(msgspec.structs.replace(_unplanned(profile), reason=str(error)))
    if not found:
        raise InvalidInputError("there is no machine to compare; name some, as in t4,g5.xlarge")
    if len(refused) == len(found):
        raise refused[0]
    return Machines(sorted(found, key=lambda machine: _rank(machine, request.objective)))


def _unplanned(profile: HardwareProfile) -> Machine:
    price = profile.usd_per_hour
    return Machine(
        hardware=profile.name,
        fits=False,
        num_gpus=profile.num_gpus,
        usd_per_hour=None if price is None else price.value,
        price_note="" if price is None else price.note,
    )


def _on(model: Model, profile: HardwareProfile, request: Request) -> Machine:
    machine = _unplanned(profile)
    try:
        plan = make_plan(model, profile, request)
    except InfeasibleError as error:
        return msgspec.structs.replace(machine, reason=str(error))
    prediction = plan.prediction
    return msgspec.structs.replace(
        machine,
        fits=True,
        runtime=plan.runtime,
        label=plan.label,
        num_ranks=plan.num_ranks,
        dtype=plan.workload.dtype,
        batch_size=plan.workload.batch_size,
        prefill_s=prediction.time["prefill"].total,
        decode_s=prediction.time["decode"].total,
        total_s=prediction.total_s,
        tokens_per_s=prediction.tokens_per_s,
        usd_per_million_tokens=prediction.usd_per_million_tokens,
        source=prediction.source,
    )


def _rank(machine: Machine, objective: str) -> tuple[bool, float]:
    if not machine.fits:
        return True, 0.0
    if objective == "latency":
        return False, machine.total_s
    if objective == "throughput":
        return False, -machine.tokens_per_s
    cost = machine.usd_per_million_tokens
    return False, float("inf") if cost is None else cost
