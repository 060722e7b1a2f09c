"""Builds a `HardwareProfile` from a machine's file and the files that it refers to. Pure."""

from collections.abc import Mapping
from math import ceil
from typing import TypeVar

from planner.errors import ProfileError
from planner.hardware.files import (
    CpuFile,
    Defaults,
    DiskSpec,
    GpuSpec,
    HostSpec,
    LinkSpec,
    MachineFile,
)
from planner.schema.hardware import Disk, Fabric, Gpu, HardwareProfile, Host, Link
from planner.schema.quantity import Quantity, Source, weakest

_Key = TypeVar("_Key")


def profile(
    name: str,
    machine: MachineFile,
    *,
    gpu_machine: MachineFile | None,
    cpu: CpuFile | None,
    defaults: Defaults,
) -> HardwareProfile:
    """The profile of `machine`.

    Args:
        name: name of the profile.
        machine: the machine's file.
        gpu_machine: the file that `machine.gpu` names; None when it names none.
        cpu: the file that `machine.host.cpu` names; None when it names none.
        defaults: values of what these files do not state.

    Raises:
        ProfileError: the machine has GPUs without a link, or a link is needed and not stated.
    """
    shared = machine if gpu_machine is None else gpu_machine
    gpu = shared.gpu
    to_device = machine.host_to_device or shared.host_to_device
    to_host = machine.device_to_host or shared.device_to_host
    peer = machine.peer or shared.peer
    try:
        return HardwareProfile(
            name=name,
            description=machine.description,
            num_gpus=machine.num_gpus,
            gpu=_gpu(gpu, defaults) if isinstance(gpu, GpuSpec) and machine.num_gpus else None,
            host=_host(machine.host, cpu, defaults),
            host_to_device=_link(to_device, defaults) if machine.num_gpus else None,
            device_to_host=_link(to_host, defaults) if machine.num_gpus else None,
            peer=_link(peer, defaults) if machine.num_gpus else None,
            disk=_disk(machine.disk, defaults),
            usd_per_hour=machine.usd_per_hour,
            fabric=_fabric(machine.fabric or shared.fabric, peer) if machine.num_gpus else None,
            gpus_per_host=machine.gpus_per_host,
        )
    except ValueError as error:
        raise ProfileError(str(error)) from error


def scaled(single: HardwareProfile, num_gpus: int, name: str) -> HardwareProfile:
    """A host with several GPUs of one kind: cores, DRAM and its rates grow with the number of GPUs.

    The host of a GPU's own profile is one GPU's share of a typical machine. The disk does not grow.

    Args:
        single: a profile with one GPU.
        num_gpus: number of GPUs, at least 2.
        name: name of the resulting profile.
    """
    host = single.host
    return HardwareProfile(
        name=name,
        description=f"{num_gpus} × {single.description}",
        num_gpus=num_gpus,
        gpu=single.gpu,
        host=Host(
            memory_bytes=_times(host.memory_bytes, num_gpus),
            memory_bandwidth_bytes_per_s=_times(host.memory_bandwidth_bytes_per_s, num_gpus),
            flops_per_s=_all_times(host.flops_per_s, num_gpus),
            num_cores=host.num_cores * num_gpus,
            op_overhead_s=host.op_overhead_s,
            hook_overhead_s=host.hook_overhead_s,
            tensor_move_overhead_s=host.tensor_move_overhead_s,
            gemv_bytes_per_s=_all_times(host.gemv_bytes_per_s, num_gpus),
            few_rows_flops_per_s={
                dtype: _all_times(rates, num_gpus) for dtype, rates in host.few_rows_flops_per_s.items()
            },
            attention_bytes_per_s=_all_times(host.attention_bytes_per_s, num_gpus),
        ),
        host_to_device=single.host_to_device,
        device_to_host=single.device_to_host,
        peer=single.peer,
        disk=single.disk,
        fabric=single.fabric,
        gpus_per_host=single.gpus_per_host,
    )


def _times(quantity: Quantity, factor: int) -> Quantity:
    return Quantity(
        value=quantity.value * factor,
        source=Source.ASSUMED,
        note=f"{factor} times one GPU's share of a typical host; {quantity.note}",
    )


def _all_times(rates: Mapping[_Key, Quantity], factor: int) -> dict[_Key, Quantity]:
    return {key: _times(rate, factor) for key, rate in rates.items()}


def _gpu(spec: GpuSpec, defaults: Defaults) -> Gpu:
    return Gpu(
        name=spec.name,
        memory_bytes=spec.memory_bytes,
        memory_bandwidth_bytes_per_s=spec.memory_bandwidth_bytes_per_s,
        flops_per_s=spec.flops_per_s,
        context_bytes=spec.context_bytes,
        gemm_efficiency=spec.gemm_efficiency or defaults.gemm_efficiency,
        bandwidth_efficiency=spec.bandwidth_efficiency or defaults.bandwidth_efficiency,
    )


def _host(spec: HostSpec, cpu: CpuFile | None, defaults: Defaults) -> Host:
    bandwidth, flops = spec.memory_bandwidth_bytes_per_s, spec.flops_per_s
    if cpu is not None:
        bandwidth = bandwidth or _dram_rate(spec.num_cores, cpu)
        flops = flops or {
            dtype: _per_core(rate, spec.num_cores) for dtype, rate in cpu.core_flops_per_s.items()
        }
    if bandwidth is None or flops is None:
        raise ProfileError("name a cpu, or state memory_bandwidth_bytes_per_s and flops_per_s")
    return Host(
        memory_bytes=spec.memory_bytes or _usable_memory(spec.installed_memory_bytes, defaults),
        memory_bandwidth_bytes_per_s=bandwidth,
        flops_per_s=flops,
        num_cores=spec.num_cores,
        op_overhead_s=spec.op_overhead_s or defaults.op_overhead_s,
        hook_overhead_s=spec.hook_overhead_s or defaults.hook_overhead_s,
        tensor_move_overhead_s=spec.tensor_move_overhead_s or defaults.tensor_move_overhead_s,
        gemv_bytes_per_s=spec.gemv_bytes_per_s,
        few_rows_flops_per_s=spec.few_rows_flops_per_s,
        attention_bytes_per_s=spec.attention_bytes_per_s,
    )


def _usable_memory(installed: Quantity, defaults: Defaults) -> Quantity:
    """The installed DRAM without the reserve of kernel and system."""
    fixed, share = defaults.reserved_memory_bytes, defaults.reserved_memory_share
    usable = installed.value * (1 - share.value) - fixed.value
    if usable <= 0:
        raise ProfileError(
            f"key host.installed_memory_bytes: {installed.value:.0f} bytes are fewer than "
            "the system itself needs"
        )
    return Quantity(
        value=float(round(usable)),
        source=weakest((installed.source, fixed.source, share.source)),
        note=f"{installed.value / 2**30:g} GiB installed ({installed.note}) less the system's own",
    )


def _dram_rate(num_cores: int, cpu: CpuFile) -> Quantity:
    """DRAM read rate: bound by the cores where they are few, by the memory channels where they are many."""
    core, socket = cpu.core_memory_bandwidth_bytes_per_s, cpu.socket_memory_bandwidth_bytes_per_s
    sockets = ceil(num_cores / cpu.num_cores_per_socket)
    return Quantity(
        value=min(num_cores * core.value, sockets * socket.value),
        source=weakest((core.source, socket.source)),
        note=f"{num_cores} cores of {cpu.description}: {core.note}; a socket at most: {socket.note}",
    )


def _per_core(rate: Quantity, num_cores: int) -> Quantity:
    return Quantity(
        value=rate.value * num_cores, source=rate.source, note=f"{num_cores} cores; one: {rate.note}"
    )


def _link(spec: LinkSpec | None, defaults: Defaults) -> Link | None:
    if spec is None:
        return None
    return Link(
        pinned_bytes_per_s=spec.pinned_bytes_per_s,
        pageable_bytes_per_s=spec.pageable_bytes_per_s,
        latency_s=spec.latency_s or defaults.link_latency_s,
    )


def _fabric(stated: Fabric | None, peer: LinkSpec | None) -> Fabric | None:
    """The stated fabric; without one, collectives use PCIe at the rate of copies between the GPUs."""
    if stated is not None or peer is None:
        return stated
    rate = peer.pinned_bytes_per_s
    return Fabric(
        kind="pcie", bus_bytes_per_s=Quantity(value=rate.value, source=Source.ASSUMED, note=rate.note)
    )


def _disk(spec: DiskSpec | None, defaults: Defaults) -> Disk | None:
    if spec is None:
        return None
    return Disk(
        capacity_bytes=spec.capacity_bytes,
        read_bytes_per_s=spec.read_bytes_per_s,
        latency_s=spec.latency_s or defaults.disk_latency_s,
    )
