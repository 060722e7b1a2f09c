"""How a runtime is told to run a model: what a search chooses between, and what a plan records."""

from typing import Literal

import msgspec


class ExecutionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One configuration of a runtime; a search prices each.

    Attributes:
        runtime: its name.
        label: in words, for a table.
        main: `gpu:0` or `cpu`: where streamed modules and the root module run.
        host_copies: `pinned` or `pageable`, for weights that are stored on the CPU and run on a GPU.
        kv_cache: `device` (with the block that fills it) or `offloaded` (host memory, moved every step).
        cpu_execution: whether chosen units may execute on the CPU beside a GPU.
        streams_from: places besides the main device that weights may be stored on and are streamed to it
            from, the nearest first: `cpu`, `disk` or `peers` (cut over the ranks' GPUs).
        overlaps: whether weights are copied while the device computes, so that only the longer counts.
        num_ranks: processes, one for each GPU in use (or, on the CPU, so many all the same).
        num_streams: ranks that generate sequences of their own; 1 when all work on the same ones.
        weight_bits: width to which the runtime quantizes weights as it loads them, or None.
        keeps_host_pages: whether a script that runs on the processor alone has the C library keep pages.
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
