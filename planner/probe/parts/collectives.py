"""Sums over all ranks, by size; one rank's process. Rank 0 writes what was found."""

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
    """Latency and bus bandwidth of all-reduce: a line through several sizes.

    The bus bandwidth is what each rank sends, 2 (n - 1) / n of the message, over the time; see NCCL's tests.

    Args:
        findings: filled.
        backend: `nccl`, or `gloo` on the CPU.
        largest_bytes: sizes above are left out.
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
    """Seconds of each all-reduce of so many bytes; every rank makes as many runs as the others."""
    tensor = torch.ones(num_bytes // 2, dtype=torch.float16, device=device)

    def reduce() -> None:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return repeat(reduce, wait, least=_RUNS, most=_RUNS)
