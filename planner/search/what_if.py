"""What would change if the machine or the weights were a little different: a plan made again. Pure."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec

from planner.errors import InfeasibleError, InvalidInputError
from planner.graph.model import Model
from planner.graph.schema import ModuleGraph, Node, Tensor
from planner.hardware.overrides import apply
from planner.schema.hardware import HardwareProfile
from planner.schema.plan import Plan
from planner.schema.quantity import Quantity
from planner.schema.request import Request
from planner.search.choose import make_plan

_GIB = 2**30
#: What a model that is planned in float32 might be run in, the safer first.
_HALF: Final = ("bfloat16", "float16")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change, and the best plan with it.

    Attributes:
        what: the change, in words.
        possible: whether any plan fits then; `reason` says why not.
        label: the way that then wins.
        batch_size: its batch.
        decode_s, tokens_per_s: its prediction.
        speedup: of the objective over the machine as it is: whole call for latency, tokens per second
            otherwise; 1 is no change.
    """

    what: str
    possible: bool
    reason: str = ""
    label: str = ""
    batch_size: int = 0
    decode_s: float = 0.0
    tokens_per_s: float = 0.0
    speedup: float = 1.0


def what_if(model: Model, plan: Plan) -> tuple[Change, ...]:
    """More GPU memory, faster links and disk, more host memory, and fewer bits, one change at a time.

    The plan's own request is repeated for each change, and compared with the same request on the plan's
    machine as it is.

    Args:
        model: the plan's.
        plan: of any objective and limits.
    """
    request, before = plan.request, _before(model, plan)
    changes = [(what, model, profile, request) for what, profile in _machines(plan)]
    half = next((dtype for dtype in _HALF if dtype in plan.hardware.native_flops_per_s), None)
    if half is not None and plan.workload.dtype == "float32":
        in_half = msgspec.structs.replace(request, dtype=half)
        changes.append((f"everything in {half}", model, plan.hardware, in_half))
    if plan.weight_bits is None:
        changes.append(("weights in int8, decoded for nothing", int8_weights(model), plan.hardware, request))
    return tuple(_change(*change, before=before) for change in changes)


def _before(model: Model, plan: Plan) -> Plan:
    """The request on the machine as it is, planned anew: another release may have priced the plan."""
    try:
        return make_plan(model, plan.hardware, plan.request)
    except (InfeasibleError, InvalidInputError):
        return plan


def _machines(plan: Plan) -> Iterator[tuple[str, HardwareProfile]]:
    profile = plan.hardware
    if profile.gpu is not None and profile.host_to_device is not None:
        more = round(profile.gpu.memory_bytes.value) + _GIB
        yield "one GiB more on each GPU", apply(profile, gpu_memory_bytes=more)
        link = profile.host_to_device.pinned_bytes_per_s.value
        yield "twice the link", apply(profile, link_bytes_per_s=2 * link)
    if profile.num_gpus > 1 and profile.peer is not None:
        yield "twice the links between GPUs", _with_faster_peers(profile)
    disk = profile.disk
    if disk is not None and any(placement.stored_on == "disk" for placement in plan.placements):
        faster = round(disk.capacity_bytes.value), 2 * disk.read_bytes_per_s.value
        yield "twice the disk's rate", apply(profile, nvme=faster)
    host = round(profile.host.memory_bytes.value)
    yield "twice the host memory", apply(profile, cpu_memory_bytes=2 * host)


def _with_faster_peers(profile: HardwareProfile) -> HardwareProfile:
    """Twice the bandwidth between GPUs, for copies and for collectives."""

    def twice(quantity: Quantity) -> Quantity:
        return msgspec.structs.replace(quantity, value=2 * quantity.value)

    peer, fabric = profile.peer, profile.fabric
    if peer is not None:
        peer = msgspec.structs.replace(peer, pinned_bytes_per_s=twice(peer.pinned_bytes_per_s))
    if fabric is not None:
        fabric = msgspec.structs.replace(fabric, bus_bytes_per_s=twice(fabric.bus_bytes_per_s))
    return msgspec.structs.replace(profile, peer=peer, fabric=fabric)


def int8_weights(model: Model) -> Model:
    """The same model with the matrices of its blocks in one byte an element; activations and cache stay."""
    graph = model.graph
    nodes = tuple(_int8(node) if node.block is not None else node for node in graph.nodes)
    changed: ModuleGraph = msgspec.structs.replace(graph, nodes=nodes)
    return replace(model, graph=changed)


def _int8(node: Node) -> Node:
    def narrowed(tensor: Tensor) -> Tensor:
        if tensor.kind != "parameter" or len(tensor.shape) < 2:
            return tensor
        return msgspec.structs.replace(tensor, dtype="int8")

    return msgspec.structs.replace(node, tensors=tuple(narrowed(t) for t in node.tensors))


def _change(what: str, model: Model, profile: HardwareProfile, request: Request, *, before: Plan) -> Change:
    try:
        plan = make_plan(model, profile, request)
    except (InfeasibleError, InvalidInputError) as error:
        return Change(what=what, possible=False, reason=str(error))
    old, new = before.prediction, plan.prediction
    speedup = (
        old.total_s / new.total_s if request.objective == "latency" else new.tokens_per_s / old.tokens_per_s
    )
    return Change(
        what=what,
        possible=True,
        label=plan.label,
        batch_size=plan.workload.batch_size,
        decode_s=new.time["decode"].total,
        tokens_per_s=new.tokens_per_s,
        speedup=speedup,
    )
