"""Replaces numbers of a profile by those that the user states. Pure."""

from typing import Final

import msgspec

from planner.errors import InvalidInputError
from planner.schema.hardware import Disk, HardwareProfile, Link
from planner.schema.quantity import Quantity, Source

_NOTE: Final = "given on the command line"
_DISK_LATENCY: Final = Quantity(
    value=100e-6, source=Source.ASSUMED, note="typical NVMe; the profile has no disk of its own"
)


def apply(
    profile: HardwareProfile,
    *,
    num_gpus: int | None = None,
    gpu_memory_bytes: int | None = None,
    cpu_memory_bytes: int | None = None,
    nvme: tuple[int, float] | None = None,
    link_bytes_per_s: float | None = None,
) -> HardwareProfile:
    """`profile` with the numbers that are not None replaced; the rest, the host included, stays.

    Args:
        profile: the machine to start from.
        num_gpus: number of GPUs to use. 0 removes them; with more than the profile has, its price is unknown.
        gpu_memory_bytes: memory a process can use on each GPU, its CUDA context included.
        cpu_memory_bytes: DRAM a process may fill.
        nvme: capacity in bytes and read rate in bytes per second of a local disk.
        link_bytes_per_s: rate of pinned copies between the host and each GPU, in both directions; the rate of
            pageable copies is lowered to it where it exceeds it.

    Raises:
        InvalidInputError: a size or rate is not positive, or a GPU option is given for a machine without
            GPUs.
    """
    _check(gpu_memory_bytes=gpu_memory_bytes, cpu_memory_bytes=cpu_memory_bytes, link=link_bytes_per_s)
    result = profile if num_gpus is None else _with_gpus(profile, num_gpus)
    if gpu_memory_bytes is not None:
        result = _with_gpu_memory(result, gpu_memory_bytes)
    if cpu_memory_bytes is not None:
        host = msgspec.structs.replace(result.host, memory_bytes=_given(cpu_memory_bytes))
        result = msgspec.structs.replace(result, host=host)
    if nvme is not None:
        result = _with_disk(result, *nvme)
    if link_bytes_per_s is not None:
        result = _with_link(result, link_bytes_per_s)
    return result


def _given(value: float) -> Quantity:
    return Quantity(value=float(value), source=Source.ASSUMED, note=_NOTE)


def _check(*, gpu_memory_bytes: int | None, cpu_memory_bytes: int | None, link: float | None) -> None:
    for value, what in (
        (gpu_memory_bytes, "GPU memory"),
        (cpu_memory_bytes, "CPU memory"),
        (link, "the link's rate"),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise InvalidInputError(f"{what} must be above zero and finite, not {value}")


def _with_gpus(profile: HardwareProfile, num_gpus: int) -> HardwareProfile:
    if num_gpus < 0:
        raise InvalidInputError(f"the number of GPUs must not be negative, not {num_gpus}")
    if num_gpus == 0:
        return msgspec.structs.replace(
            profile,
            num_gpus=0,
            gpu=None,
            host_to_device=None,
            device_to_host=None,
            peer=None,
            fabric=None,
        )
    _need_gpus(profile, "the number of GPUs")
    if num_gpus > 1 and profile.peer is None:
        raise InvalidInputError(
            f"{profile.name} does not state a link between GPUs; add a [peer] table to its file"
        )
    price = profile.usd_per_hour if num_gpus <= profile.num_gpus else None
    return msgspec.structs.replace(profile, num_gpus=num_gpus, usd_per_hour=price)


def _with_gpu_memory(profile: HardwareProfile, num_bytes: int) -> HardwareProfile:
    gpu = profile.gpu
    if gpu is None:
        raise InvalidInputError(f"{profile.name} has no GPU, so GPU memory cannot be set")
    if num_bytes <= gpu.context_bytes.value:
        raise InvalidInputError(
            f"GPU memory of {num_bytes} bytes is not more than the {gpu.context_bytes.value:.0f} bytes "
            "that a CUDA context takes"
        )
    return msgspec.structs.replace(profile, gpu=msgspec.structs.replace(gpu, memory_bytes=_given(num_bytes)))


def _with_disk(profile: HardwareProfile, capacity_bytes: int, read_bytes_per_s: float) -> HardwareProfile:
    for value, what in ((capacity_bytes, "capacity"), (read_bytes_per_s, "rate")):
        if not 0 < value < float("inf"):
            raise InvalidInputError(f"the NVMe's {what} must be above zero and finite, not {value}")
    disk = Disk(
        capacity_bytes=_given(capacity_bytes),
        read_bytes_per_s=_given(read_bytes_per_s),
        latency_s=_DISK_LATENCY if profile.disk is None else profile.disk.latency_s,
    )
    return msgspec.structs.replace(profile, disk=disk)


def _with_link(profile: HardwareProfile, bytes_per_s: float) -> HardwareProfile:
    _need_gpus(profile, "a link to the GPU")
    return msgspec.structs.replace(
        profile,
        host_to_device=_relinked(profile.host_to_device, bytes_per_s),
        device_to_host=_relinked(profile.device_to_host, bytes_per_s),
    )


def _relinked(link: Link | None, bytes_per_s: float) -> Link | None:
    """The link at a stated pinned rate. The CPU bounds pageable copies, unless the link is slower."""
    if link is None:
        return None
    pageable = link.pageable_bytes_per_s
    if pageable.value > bytes_per_s:
        pageable = Quantity(
            value=float(bytes_per_s), source=Source.ASSUMED, note=f"no faster than the link {_NOTE}"
        )
    return Link(
        pinned_bytes_per_s=_given(bytes_per_s), pageable_bytes_per_s=pageable, latency_s=link.latency_s
    )


def _need_gpus(profile: HardwareProfile, what: str) -> None:
    if profile.gpu is None:
        raise InvalidInputError(f"{profile.name} has no GPU, so {what} cannot be set")
