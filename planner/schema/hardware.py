"""Description of a machine: capacities, rates and links, each with a source."""

from typing import Annotated, Final, Literal

import msgspec

from planner.schema.notebook import ShownInNotebook
from planner.schema.quantity import Quantity

#: GPUs of one host where a machine's file does not say: the most of any machine among the profiles.
DEFAULT_GPUS_PER_HOST: Final = 8

#: Rows of a matrix product; one row is a matrix-vector product.
Rows = Annotated[int, msgspec.Meta(gt=1)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen, keyword-only, and an unknown key in a file is an error."""


class Gpu(_Strict, frozen=True, kw_only=True):
    """One GPU.

    Attributes:
        name: the vendor's name, as in `T4`.
        memory_bytes: memory that a process can use, its CUDA context included.
        memory_bandwidth_bytes_per_s: device memory, datasheet or measured copy (read + write).
        flops_per_s: dense matrix rate by dtype name; a missing dtype is not supported natively.
        context_bytes: memory of a CUDA context and its libraries' workspaces.
        gemm_efficiency: fraction of `flops_per_s` that large matrix products reach.
        bandwidth_efficiency: fraction of `memory_bandwidth_bytes_per_s` that kernels reach.
    """

    name: str
    memory_bytes: Quantity
    memory_bandwidth_bytes_per_s: Quantity
    flops_per_s: dict[str, Quantity]
    context_bytes: Quantity
    gemm_efficiency: Quantity
    bandwidth_efficiency: Quantity


class Host(_Strict, frozen=True, kw_only=True, omit_defaults=True):
    """The CPU and its memory.

    Attributes:
        memory_bytes: DRAM that processes can use.
        memory_bandwidth_bytes_per_s: DRAM read bandwidth that a matrix-vector product reaches.
        flops_per_s: matrix rate of all cores by dtype name.
        num_cores: physical cores.
        gemv_bytes_per_s: rate at which a matrix-vector product reads weights, by dtype. Where a dtype is
            absent, the memory bandwidth is assumed; a CPU that has to convert a dtype may reach half of it.
        few_rows_flops_per_s: matrix rate of products with few rows, by dtype and rows, where it was measured:
            less than memory bandwidth and matrix rate would allow.
        attention_bytes_per_s: rate at which attention of one query reads the KV cache, by dtype. Where a
            dtype is absent, the rate of a matrix-vector product is assumed; a CPU that has to convert a dtype
            may reach a fourth of it.
        op_overhead_s: host time to dispatch one operation (Python and framework, per aten operation).
        hook_overhead_s: host time of one Accelerate hook around one module's forward.
        tensor_move_overhead_s: host time, besides the copy itself, to put one offloaded tensor on a
            device and remove it again (Accelerate's per-tensor work, allocator included).
    """

    memory_bytes: Quantity
    memory_bandwidth_bytes_per_s: Quantity
    flops_per_s: dict[str, Quantity]
    num_cores: int
    op_overhead_s: Quantity
    hook_overhead_s: Quantity
    tensor_move_overhead_s: Quantity
    gemv_bytes_per_s: dict[str, Quantity] = {}
    few_rows_flops_per_s: dict[str, dict[Rows, Quantity]] = {}
    attention_bytes_per_s: dict[str, Quantity] = {}


class Link(_Strict, frozen=True, kw_only=True):
    """One direction of a link between host and device, or between two devices.

    Attributes:
        pinned_bytes_per_s: bandwidth from or to page-locked host memory (or device memory, peer to peer).
        pageable_bytes_per_s: bandwidth from or to ordinary host memory.
        latency_s: time of an empty copy.
    """

    pinned_bytes_per_s: Quantity
    pageable_bytes_per_s: Quantity
    latency_s: Quantity


class Fabric(_Strict, frozen=True, kw_only=True):
    """The interconnect that collectives between the GPUs of one machine use.

    Attributes:
        kind: `nvlink` or `pcie`; they differ in the latency of a step.
        bus_bytes_per_s: NCCL's bus bandwidth for large messages.
    """

    kind: Literal["nvlink", "pcie"]
    bus_bytes_per_s: Quantity


class Disk(_Strict, frozen=True, kw_only=True):
    """Local NVMe. A machine without one has no `disk`: a network volume does not count.

    Attributes:
        capacity_bytes: bytes that can be written to it.
        read_bytes_per_s: rate of sequential reads that are not in the page cache.
        latency_s: time to the first byte of a read.
    """

    capacity_bytes: Quantity
    read_bytes_per_s: Quantity
    latency_s: Quantity


class HardwareProfile(_Strict, ShownInNotebook, frozen=True, kw_only=True):
    """A machine.

    Attributes:
        name: the name that users type, as in `v100-16g` or `p4d.24xlarge`.
        description: one line.
        num_gpus: number of GPUs, which are all equal; 0 when the machine has none. More than `host_gpus` are
            distributed over several hosts.
        gpu: one of them, or None.
        host: the CPU and its memory.
        host_to_device: each GPU's link from the host, or None without GPUs.
        device_to_host: each GPU's link to the host, or None without GPUs.
        peer: link from GPU to GPU; required with more than one GPU. Its pinned bandwidth is the one used.
        disk: local NVMe, or None.
        usd_per_hour: on-demand price with its date in the note, or None.
        fabric: interconnect of collectives over all GPUs, or None where it is not known.
        gpus_per_host: the most GPUs of one host, as the machine's file states it; use `host_gpus` to read it.
            Unset rather than None, so that a plan's file has no key for a machine that does not state it.
    """

    name: str
    description: str
    num_gpus: int
    gpu: Gpu | None
    host: Host
    host_to_device: Link | None
    device_to_host: Link | None
    peer: Link | None = None
    disk: Disk | None = None
    usd_per_hour: Quantity | None = None
    fabric: Fabric | None = None
    gpus_per_host: int | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.num_gpus < 0:
            raise ValueError(f"num_gpus must not be negative, not {self.num_gpus}")
        if self.host_gpus < 1:
            raise ValueError(f"gpus_per_host must be at least 1, not {self.host_gpus}")
        has_gpus = self.num_gpus > 0
        for part, name in (
            (self.gpu, "gpu"),
            (self.host_to_device, "host_to_device"),
            (self.device_to_host, "device_to_host"),
        ):
            if has_gpus and part is None:
                raise ValueError(f"profile {self.name!r} has {self.num_gpus} GPUs but no {name}")
        if self.num_gpus > 1 and self.peer is None:
            raise ValueError(f"profile {self.name!r} has {self.num_gpus} GPUs but no peer link")

    @property
    def native_flops_per_s(self) -> dict[str, Quantity]:
        """Matrix rates by dtype: of the GPU, or of the CPU where the machine has no GPU."""
        return self.gpu.flops_per_s if self.gpu is not None else self.host.flops_per_s

    @property
    def host_gpus(self) -> int:
        """The most GPUs of one host: as stated, or `DEFAULT_GPUS_PER_HOST`."""
        stated = self.gpus_per_host
        return DEFAULT_GPUS_PER_HOST if isinstance(stated, msgspec.UnsetType) else stated
