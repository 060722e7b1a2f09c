"""The configuration of a runtime: a search chooses one, and a plan records it."""

from typing import Literal

import msgspec


class ExecutionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One configuration of a runtime; a search prices each.

    Attributes:
        runtime: name of the runtime.
        label: the configuration in words, for a table.
        main: main device, `gpu:0` or `cpu`: the root module and streamed modules run there.
        host_copies: `pinned` or `pageable`, for weights that are stored on the CPU and run on a GPU.
        kv_cache: `device` (with the block that fills it) or `offloaded` (host memory, moved every step).
        cpu_execution: whether chosen units may run on the CPU beside a GPU.
        streams_from: places besides the main device where weights may be stored, to be streamed to it, the
            nearest first: `cpu`, `disk` or `peers` (partitioned over the ranks' GPUs).
        overlaps: whether weights are copied while the device computes, so that only the longer counts.
        num_ranks: processes, one for each GPU in use; on the CPU they share it.
        num_streams: ranks that generate sequences of their own; 1 when all ranks work on the same ones.
        weight_bits: width to which the runtime quantizes weights as it loads them, or None.
        keeps_host_pages: whether a script that runs on the CPU alone lets the C library retain heap pages.
    """

    runtime: str
    label: str
    main: str
    host_copies: Literal["pinned", "pageable"] = "pageable"
    kv_cache: Literal["device", "offloaded"] = "device"
    cpu_execution: bool = False
    streams_from: tuple[str, ...] = ()
    overlaps: bool = False
    num_ranks: int = 1
    num_streams: int = 1
    weight_bits: int | None = None
    keeps_host_pages: bool = True
