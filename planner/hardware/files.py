"""What a profile's files hold, and reading them. A machine is one file; what machines share is named in it.

`gpus/`, `instances/` and `hosts/` hold machines, `cpus/` hold processors, `defaults.toml` the numbers that
no machine has measured for itself.
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
    """`schema.Gpu`; an efficiency that is not stated is the default."""

    name: str
    memory_bytes: Quantity
    memory_bandwidth_bytes_per_s: Quantity
    flops_per_s: dict[str, Quantity]
    context_bytes: Quantity
    gemm_efficiency: Quantity | None = None
    bandwidth_efficiency: Quantity | None = None


class LinkSpec(_Strict, frozen=True, kw_only=True):
    """`schema.Link`; without `latency_s` the default."""

    pinned_bytes_per_s: Quantity
    pageable_bytes_per_s: Quantity
    latency_s: Quantity | None = None


class DiskSpec(_Strict, frozen=True, kw_only=True):
    """`schema.Disk`; without `latency_s` the default."""

    capacity_bytes: Quantity
    read_bytes_per_s: Quantity
    latency_s: Quantity | None = None


class HostSpec(_Strict, frozen=True, kw_only=True):
    """`schema.Host`: rates stated, or those of `num_cores` cores of a named `cpu`.

    Attributes:
        installed_memory_bytes: DRAM as sold.
        memory_bytes: what a process may fill of it; without it, the installed less the default reserve of
            kernel and system.
        cpu: a file in `cpus/`.
        gemv_bytes_per_s, few_rows_flops_per_s, attention_bytes_per_s: of `schema.Host`, by dtype; may be
            left out.
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
        num_gpus: 0 without GPUs.
        host_to_device, device_to_host, peer, fabric: its own, before those of the named GPU's file. Without
            any fabric, PCIe at the rate of `peer`.
        gpus_per_host: the most GPUs of one host, `schema.DEFAULT_GPUS_PER_HOST` without it; ranks on more
            are started on several hosts. A GPU's own file says it for counts of that GPU (`16xt4`), and not
            for machines that name the GPU.
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
        num_cores_per_socket: physical cores.
        socket_memory_bandwidth_bytes_per_s: DRAM read bandwidth that all cores of a socket reach.
        core_memory_bandwidth_bytes_per_s: a core's share in a matrix-vector product.
        core_flops_per_s: matrix rate that one of many busy cores reaches, by dtype name.
    """

    description: str
    num_cores_per_socket: int
    socket_memory_bandwidth_bytes_per_s: Quantity
    core_memory_bandwidth_bytes_per_s: Quantity
    core_flops_per_s: dict[str, Quantity]


class Defaults(_Strict, frozen=True, kw_only=True):
    """`defaults.toml`: one place for what is the same everywhere until somebody measures it.

    Attributes:
        op_overhead_s, hook_overhead_s, tensor_move_overhead_s: of `schema.Host`.
        gemm_efficiency, bandwidth_efficiency: of `schema.Gpu`.
        reserved_memory_bytes, reserved_memory_share: DRAM that kernel, firmware and system keep.
        link_latency_s, disk_latency_s: of `schema.Link` and `schema.Disk`.
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
    """The TOML file at `path` as a `kind`.

    Raises:
        ProfileError: it cannot be read, is not TOML, or a key is unknown, missing or out of range.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read hardware profile {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"hardware profile {path} is not valid TOML: {error}") from error
    try:
        # Rows are numbers, and TOML's keys are words.
        return msgspec.convert(data, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ProfileError(f"hardware profile {path}: {_named(str(error))}") from error


@cache
def gpu_machine(name: str) -> MachineFile:
    """The file `gpus/NAME.toml`; it states its GPU itself.

    Raises:
        ProfileError: there is none, or it does not.
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
    """The message of msgspec with its `$.a.b` as `key a.b`."""
    text, _, path = message.partition(" - at `$")
    return f"key {path.strip('.`')}: {text}" if path.strip(".`") else text


def check(profile: HardwareProfile, where: str) -> None:
    """Refuse capacities and rates of zero: they would only surface as a division later.

    Raises:
        ProfileError: naming the key.
    """
    for path, quantity in quantities(profile):
        if quantity.value == 0 and not path.endswith(("latency_s", "overhead_s")):
            raise ProfileError(f"hardware profile {where}: key {path}: must be above zero")


def quantities(value: object, path: str = "") -> list[tuple[str, Quantity]]:
    """Every quantity in a profile with its dotted path."""
    if isinstance(value, Quantity):
        return [(path, value)]
    if isinstance(value, msgspec.Struct):
        items = [(field, getattr(value, field)) for field in value.__struct_fields__]
    elif isinstance(value, dict):
        items = list(value.items())
    else:
        return []
    return [found for key, item in items for found in quantities(item, f"{path}.{key}".lstrip("."))]
