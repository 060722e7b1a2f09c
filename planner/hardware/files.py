"""Schema and reading of the hardware files. A machine is one file, which may refer to others.

`gpus/`, `instances/` and `hosts/` contain machines, `cpus/` processors, and `defaults.toml` the values for
machines that do not state their own.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from planner.errors import ProfileError
from planner.schema.hardware import Fabric, HardwareProfile, Rows
from planner.schema.quantity import Quantity

ROOT: Final = Path(__file__).parent / "profiles"
_T = TypeVar("_T")


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen, keyword-only, and an unknown key in a file is an error."""


class GpuSpec(_Strict, frozen=True, kw_only=True):
    """`schema.Gpu`; an efficiency that is not stated takes the default."""

    name: str
    memory_bytes: Quantity
    memory_bandwidth_bytes_per_s: Quantity
    flops_per_s: dict[str, Quantity]
    context_bytes: Quantity
    gemm_efficiency: Quantity | None = None
    bandwidth_efficiency: Quantity | None = None


class LinkSpec(_Strict, frozen=True, kw_only=True):
    """`schema.Link`; a latency that is not stated takes the default."""

    pinned_bytes_per_s: Quantity
    pageable_bytes_per_s: Quantity
    latency_s: Quantity | None = None


class DiskSpec(_Strict, frozen=True, kw_only=True):
    """`schema.Disk`; a latency that is not stated takes the default."""

    capacity_bytes: Quantity
    read_bytes_per_s: Quantity
    latency_s: Quantity | None = None


class HostSpec(_Strict, frozen=True, kw_only=True):
    """`schema.Host`: rates stated, or those of `num_cores` cores of a named `cpu`.

    Attributes:
        installed_memory_bytes: nominal DRAM.
        memory_bytes: the part of it that a process may fill; by default the installed DRAM without the
            default reserve of kernel and system.
        cpu: name of a file in `cpus/`.
        gemv_bytes_per_s, few_rows_flops_per_s, attention_bytes_per_s: as in `schema.Host`, by dtype;
            optional.
    """

    installed_memory_bytes: Quantity
    num_cores: int
    memory_bytes: Quantity | None = None
    cpu: str | None = None
    memory_bandwidth_bytes_per_s: Quantity | None = None
    flops_per_s: dict[str, Quantity] | None = None
    gemv_bytes_per_s: dict[str, Quantity] = {}
    few_rows_flops_per_s: dict[str, dict[Rows, Quantity]] = {}
    attention_bytes_per_s: dict[str, Quantity] = {}
    op_overhead_s: Quantity | None = None
    hook_overhead_s: Quantity | None = None
    tensor_move_overhead_s: Quantity | None = None

    def __post_init__(self) -> None:
        if self.num_cores < 1:
            raise ValueError(f"num_cores must be at least 1, not {self.num_cores}")
        if self.cpu is None and (self.memory_bandwidth_bytes_per_s is None or self.flops_per_s is None):
            raise ValueError("name a cpu, or state memory_bandwidth_bytes_per_s and flops_per_s")
        if self.memory_bytes is not None and self.memory_bytes.value > self.installed_memory_bytes.value:
            raise ValueError(
                f"memory_bytes is {self.memory_bytes.value:.0f}, more than the "
                f"{self.installed_memory_bytes.value:.0f} of installed_memory_bytes"
            )


class MachineFile(_Strict, frozen=True, kw_only=True):
    """One machine.

    Attributes:
        gpu: its GPU, or the name of a file in `gpus/` whose GPU and links it has; None without GPUs.
        num_gpus: number of GPUs, 0 without any.
        host_to_device, device_to_host, peer, fabric: its links; those of the named GPU's file by default.
            Without any fabric, PCIe at the rate of `peer`.
        gpus_per_host: the largest number of GPUs in one host, by default `schema.DEFAULT_GPUS_PER_HOST`; more
            ranks are started on several hosts. In a GPU's own file it applies to counts of that GPU
            (`16xt4`), and not to machines that name the GPU.
    """

    description: str
    num_gpus: int
    host: HostSpec
    gpu: GpuSpec | str | None = None
    host_to_device: LinkSpec | None = None
    device_to_host: LinkSpec | None = None
    peer: LinkSpec | None = None
    fabric: Fabric | None = None
    disk: DiskSpec | None = None
    usd_per_hour: Quantity | None = None
    gpus_per_host: int | msgspec.UnsetType = msgspec.UNSET


class CpuFile(_Strict, frozen=True, kw_only=True):
    """One processor model.

    Attributes:
        num_cores_per_socket: physical cores of one socket.
        socket_memory_bandwidth_bytes_per_s: DRAM read bandwidth of all cores of a socket together.
        core_memory_bandwidth_bytes_per_s: DRAM read bandwidth of one core in a matrix-vector product.
        core_flops_per_s: rate of one core in matrix products while many cores are busy, by dtype name.
    """

    description: str
    num_cores_per_socket: int
    socket_memory_bandwidth_bytes_per_s: Quantity
    core_memory_bandwidth_bytes_per_s: Quantity
    core_flops_per_s: dict[str, Quantity]


class Defaults(_Strict, frozen=True, kw_only=True):
    """`defaults.toml`: values for every machine that does not state its own.

    Attributes:
        op_overhead_s, hook_overhead_s, tensor_move_overhead_s: as in `schema.Host`.
        gemm_efficiency, bandwidth_efficiency: as in `schema.Gpu`.
        reserved_memory_bytes, reserved_memory_share: DRAM of kernel, firmware and system, as a number of
            bytes and a fraction of the installed DRAM; both are subtracted.
        link_latency_s, disk_latency_s: as in `schema.Link` and `schema.Disk`.
    """

    op_overhead_s: Quantity
    hook_overhead_s: Quantity
    tensor_move_overhead_s: Quantity
    gemm_efficiency: Quantity
    bandwidth_efficiency: Quantity
    reserved_memory_bytes: Quantity
    reserved_memory_share: Quantity
    link_latency_s: Quantity
    disk_latency_s: Quantity


def read(path: Path, kind: type[_T]) -> _T:
    """The TOML file at `path`, validated as a `kind`.

    Raises:
        ProfileError: the file cannot be read, is not TOML, or a key is unknown, missing or out of range.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read hardware profile {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"hardware profile {path} is not valid TOML: {error}") from error
    try:
        # TOML's keys are strings, and those of `Rows` are integers.
        return msgspec.convert(data, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ProfileError(f"hardware profile {path}: {_named(str(error))}") from error


@cache
def gpu_machine(name: str) -> MachineFile:
    """The file `gpus/NAME.toml`.

    Raises:
        ProfileError: there is none, or it does not state its GPU in a table.
    """
    machine = read(ROOT / "gpus" / f"{name}.toml", MachineFile)
    if not isinstance(machine.gpu, GpuSpec):
        raise ProfileError(f"hardware profile {name} must state its GPU in a [gpu] table")
    return machine


@cache
def cpu(name: str) -> CpuFile:
    """The file `cpus/NAME.toml`.

    Raises:
        ProfileError: there is none.
    """
    return read(ROOT / "cpus" / f"{name}.toml", CpuFile)


@cache
def defaults() -> Defaults:
    """The file `defaults.toml`."""
    return read(ROOT / "defaults.toml", Defaults)


def known(folder: str) -> tuple[str, ...]:
    """Names of the files in one folder of the profiles, sorted."""
    return tuple(sorted(path.stem for path in (ROOT / folder).glob("*.toml")))


def _named(message: str) -> str:
    """A message of msgspec with its path `$.a.b` written as `key a.b`."""
    text, _, path = message.partition(" - at `$")
    return f"key {path.strip('.`')}: {text}" if path.strip(".`") else text


def check(profile: HardwareProfile, where: str) -> None:
    """Refuse capacities and rates of zero, which would cause a division by zero later.

    Raises:
        ProfileError: a quantity is zero; the message names its key.
    """
    for path, quantity in quantities(profile):
        if quantity.value == 0 and not path.endswith(("latency_s", "overhead_s")):
            raise ProfileError(f"hardware profile {where}: key {path}: must be above zero")


def quantities(value: object, path: str = "") -> list[tuple[str, Quantity]]:
    """Every quantity in a profile, as (dotted path, quantity)."""
    if isinstance(value, Quantity):
        return [(path, value)]
    if isinstance(value, msgspec.Struct):
        items = [(field, getattr(value, field)) for field in value.__struct_fields__]
    elif isinstance(value, dict):
        items = list(value.items())
    else:
        return []
    return [pair for key, item in items for pair in quantities(item, f"{path}.{key}".lstrip("."))]
