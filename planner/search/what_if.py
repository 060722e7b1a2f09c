"""The effect of one change to the machine or to the weights: the request is planned again. Pure."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec

from planner.cost.memory_terms import GIB
from planner.errors import InfeasibleError, InvalidInputError
from planner.graph.model import Model
from planner.graph.schema import ModuleGraph, Node, Tensor
from planner.hardware.overrides import apply
from planner.schema.hardware import HardwareProfile
from planner.schema.plan import Plan
from planner.schema.quantity import Quantity
from planner.schema.request import Request
from planner.search.choose import make_plan

#: Dtypes of half the size for a model that is planned in float32; the one with the wider range first.
_HALF: Final = ("bfloat16", "float16")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change, and the best plan with it.

    Attributes:
        what: the change, in words.
        possible: whether any plan fits with the change.
        reason: why none fits; empty when `possible`.
        label: the configuration that is then chosen, in words.
        batch_size: its batch.
        decode_s: its predicted seconds of the mean decode step.
        tokens_per_s: its predicted tokens per second.
        speedup: ratio of the objective to that of the machine as it is: of the whole call's time for latency,
            of tokens per second otherwise; 1 is no change.
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
    """More GPU memory, faster links and disk, more host memory, and smaller weights, one change at a time.

    The plan's own request is planned again with each change, and compared with the same request on the plan's
    machine as it is.
    """
    request, before = plan.request, _before(model, plan)
    changes = [(what, model, profile, request) for what, profile in _machines(plan)]
    half = next((dtype for dtype in _HALF if dtype in plan.hardware.native_flops_per_s), None)
    if half is not None and plan.workload.dtype == "float32":
        in_half = msgspec.structs.replace(request, dtype=half)
        changes.append((f"everything in {half}", model, plan.hardware, in_half))
    if plan.weight_bits is None:
        int8 = int8_weights(model)
        changes.append(("int8 weights, if decoding cost nothing", int8, plan.hardware, request))
    return tuple(_change(*change, before=before) for change in changes)


def _before(model: Model, plan: Plan) -> Plan:
    """The request planned again on the machine as it is, because another release may have made the plan."""
    try:
        return make_plan(model, plan.hardware, plan.request)
    except (InfeasibleError, InvalidInputError):
        return plan


def _machines(plan: Plan) -> Iterator[tuple[str, HardwareProfile]]:
    profile = plan.hardware
    if profile.gpu is not None and profile.host_to_device is not None:
        more = round(profile.gpu.memory_bytes.value) + GIB
        yield "one GiB more on each GPU", apply(profile, gpu_memory_bytes=more)
        link = profile.host_to_device.pinned_bytes_per_s.value
        yield "twice the host-GPU bandwidth", apply(profile, link_bytes_per_s=2 * link)
    if profile.num_gpus > 1 and profile.peer is not None:
        yield "twice the bandwidth between GPUs", _with_faster_peers(profile)
    disk = profile.disk
    if disk is not None and any(placement.stored_on == "disk" for placement in plan.placements):
        faster = round(disk.capacity_bytes.value), 2 * disk.read_bytes_per_s.value
        yield "twice the disk's rate", apply(profile, nvme=faster)
    host = round(profile.host.memory_bytes.value)
    yield "twice the host memory", apply(profile, cpu_memory_bytes=2 * host)


def _with_faster_peers(profile: HardwareProfile) -> HardwareProfile:
    """The profile with twice the bandwidth between GPUs, for copies and for collectives."""

    def twice(quantity: Quantity) -> Quantity:
        return msgspec.structs.replace(quantity, value=2 * quantity.value)

    peer, fabric = profile.peer, profile.fabric
    if peer is not None:
        peer = msgspec.structs.replace(peer, pinned_bytes_per_s=twice(peer.pinned_bytes_per_s))
    if fabric is not None:
        fabric = msgspec.structs.replace(fabric, bus_bytes_per_s=twice(fabric.bus_bytes_per_s))
    return msgspec.structs.replace(profile, peer=peer, fabric=fabric)


def int8_weights(model: Model) -> Model:
    """The same model with the blocks' matrices at one byte an element; activations and cache unchanged."""
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
