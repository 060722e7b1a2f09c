"""Seconds in which ZeRO-Inference brings partitions of weights to the GPUs. Pure.

Every function appends the numbers that it used to `quantities`.
"""

from planner.cost.time_terms import copy_s
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity


def partition_copy_s(
    num_bytes: int,
    num_tensors: int,
    execution: ExecutionConfig,
    profile: HardwareProfile,
    quantities: list[Quantity],
) -> float:
    """Seconds to copy each rank's partitions over its own link; host memory limits all links together.

    Args:
        num_bytes: bytes of the whole tensors.
        num_tensors: number of tensors; each is one copy on every rank.
        execution: gives the number of ranks and the kind of host memory.
        profile: the machine.
        quantities: the list that is extended.
    """
    link = profile.host_to_device
    if link is None:
        raise ValueError(f"profile {profile.name!r} has no link to a GPU")
    quantities += [link.latency_s, link.pinned_bytes_per_s, link.pageable_bytes_per_s]
    pinned = execution.host_copies == "pinned"
    seconds = copy_s(num_bytes / execution.num_ranks, link, pinned=pinned, num_copies=num_tensors)
    if execution.num_ranks == 1:
        return seconds
    memory = profile.host.memory_bandwidth_bytes_per_s
    quantities.append(memory)
    return max(seconds, num_bytes / memory.value)


def partition_read_s(
    num_bytes: int, num_tensors: int, profile: HardwareProfile, quantities: list[Quantity]
) -> float:
    """Seconds to read the partitions of all ranks from the one disk.

    Args:
        num_bytes: bytes of the whole tensors.
        num_tensors: number of tensors; each takes the disk's latency.
        profile: the machine.
        quantities: the list that is extended.
    """
    disk = profile.disk
    if disk is None:
        raise ValueError(f"profile {profile.name!r} has no disk to stream from")
    quantities += [disk.latency_s, disk.read_bytes_per_s]
    return num_tensors * disk.latency_s.value + num_bytes / disk.read_bytes_per_s.value


def gather_s(
    num_bytes: int, num_tensors: int, num_ranks: int, profile: HardwareProfile, quantities: list[Quantity]
) -> float:
    """Seconds to gather the other ranks' partitions, and to split the result, which is read and written.

    Args:
        num_bytes: bytes of the whole tensors.
        num_tensors: number of tensors; each is one all-gather.
        num_ranks: number of ranks, at least 2.
        profile: the machine.
        quantities: the list that is extended.
    """
    peer, gpu = profile.peer, profile.gpu
    if peer is None or gpu is None:
        raise ValueError(f"profile {profile.name!r} has no link between GPUs")
    quantities += [peer.latency_s, peer.pinned_bytes_per_s, gpu.memory_bandwidth_bytes_per_s]
    others = num_bytes * (num_ranks - 1) / num_ranks
    split_s = 2 * num_bytes / (gpu.memory_bandwidth_bytes_per_s.value * gpu.bandwidth_efficiency.value)
    return copy_s(others, peer, pinned=True, num_copies=num_tensors) + split_s
