"""Time of all-reduce over all ranks, by message size. Every rank runs it; rank 0 writes the findings."""

import os
from statistics import median
from typing import Final

import torch
import torch.distributed as dist

from planner.probe.clock import repeat
from planner.probe.findings import Findings
from planner.probe.fits import Measurement, fit_line

SIZES: Final = (2**12, 2**16, 2**20, 2**24, 2**26, 2**28)
_RUNS: Final = 10


def measure(findings: Findings, backend: str, largest_bytes: int = SIZES[-1]) -> None:
    """Measure latency and bus bandwidth of all-reduce with a line through several sizes.

    The bus bandwidth is defined as in nccl-tests: the bytes that each of n ranks sends, 2 (n - 1) / n of the
    message, divided by the time.

    Args:
        findings: the results are added to it.
        backend: `nccl`, or `gloo` on the CPU.
        largest_bytes: larger messages are left out.
    """
    rank = int(os.environ["RANK"])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        ranks = dist.get_world_size()
        samples = {size: _times(size, device) for size in SIZES if size <= largest_bytes}
    finally:
        dist.destroy_process_group()
    line = fit_line({size: median(seconds) for size, seconds in samples.items()})
    share = 2 * (ranks - 1) / ranks
    how = f"all-reduce over {ranks} ranks with {backend}, a line through {len(samples)} sizes"
    findings.quantities["fabric.bus_bytes_per_s"] = Measurement(
        value=share * line.bytes_per_s, spread=line.error, num_samples=_RUNS * len(samples), method=how
    )
    findings.series["all-reduce, seconds by bytes"] = {
        str(size): median(seconds) for size, seconds in samples.items()
    } | {"none, fitted": line.latency_s}


def _times(num_bytes: int, device: torch.device) -> list[float]:
    """Seconds of each all-reduce of `num_bytes` bytes; the number of runs is the same on every rank."""
    tensor = torch.ones(num_bytes // 2, dtype=torch.float16, device=device)

    def reduce() -> None:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return repeat(reduce, wait, least=_RUNS, most=_RUNS)
