"""Copies between host and GPU, and between two GPUs: a line through several sizes gives latency and rate.

The copies go through different offsets of a host buffer that is much larger than the processor's caches:
repeated copies from one offset would be served from a cache, which copies of weights are not. The copying
thread is rotated over the cores, because the driver copies pageable memory in the calling thread: on three
hosts the rate was 6 to 9 GB/s, depending on the core.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Final

import torch

from planner.probe.clock import repeat
from planner.probe.core_rotation import CoreRotation
from planner.probe.findings import Findings
from planner.probe.fits import LineFit, fit_line, over_cores

SIZES: Final = (2**12, 2**16, 2**20, 2**24, 2**26, 2**28)
_BUFFER_BYTES: Final = 2**30
_BUDGET_S: Final = 0.1
_LEAST: Final = 8


def measure(findings: Findings) -> None:
    """Measure both directions with pinned and pageable memory, and copies between GPUs."""
    host: dict[str, torch.Tensor] = {}
    findings.attempt("pinned host memory", lambda _: host.update(pinned=_host(pinned=True)))
    findings.attempt("pageable host memory", lambda _: host.update(pageable=_host(pinned=False)))
    device = torch.empty(SIZES[-1], dtype=torch.uint8, device="cuda")
    for direction in ("host_to_device", "device_to_host"):
        for kind, buffer in host.items():
            findings.attempt(
                f"{direction.replace('_', ' ')} from or to {kind} memory",
                _copies(direction, kind, buffer, device),
            )
    if torch.cuda.device_count() > 1:
        findings.attempt("copies from GPU to GPU", _peers)


def _host(*, pinned: bool) -> torch.Tensor:
    """A host buffer whose pages are allocated."""
    return torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=pinned).fill_(1)


def _copies(
    direction: str, kind: str, host: torch.Tensor, device: torch.Tensor
) -> Callable[[Findings], None]:
    def run(findings: Findings) -> None:
        turn = count()

        def copy(size: int) -> None:
            # The number of offsets is a power of two, so an odd stride visits each before it repeats one.
            start = (next(turn) * 7919 % (_BUFFER_BYTES // size)) * size
            host_part, device_part = host[start : start + size], device[:size]
            if direction == "host_to_device":
                device_part.copy_(host_part)
            else:
                host_part.copy_(device_part)

        move = CoreRotation()
        samples = {
            size: repeat(
                partial(copy, size), torch.cuda.synchronize, budget_s=_BUDGET_S, least=_LEAST, before=move
            )
            for size in SIZES
        }
        line = _fitted(findings, f"{direction}, {kind}", samples, move.num_cores)
        how = f"{kind} copies of 4 KiB to 256 MiB, a line through {len(SIZES)} sizes"
        findings.record_line(
            f"{direction}.{kind}_bytes_per_s",
            line,
            samples,
            how,
            num_cores=move.num_cores,
            latency_path=f"{direction}.latency_s" if kind == "pinned" else None,
        )

    return run


def _peers(findings: Findings) -> None:
    source = torch.empty(SIZES[-1], dtype=torch.uint8, device="cuda:0")
    target = torch.empty(SIZES[-1], dtype=torch.uint8, device="cuda:1")

    def wait() -> None:
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)

    samples = {
        size: repeat(lambda size=size: target[:size].copy_(source[:size]), wait, budget_s=_BUDGET_S)  # type: ignore[misc]
        for size in SIZES
    }
    line = _fitted(findings, "GPU to GPU", samples, 1)
    how = f"copies from GPU 0 to GPU 1, a line through {len(SIZES)} sizes"
    for kind in ("pinned", "pageable"):
        findings.record_line(f"peer.{kind}_bytes_per_s", line, samples, how, latency_path="peer.latency_s")


def _fitted(findings: Findings, name: str, samples: Mapping[int, list[float]], num_cores: int) -> LineFit:
    means = {size: over_cores(seconds, num_cores, name).value for size, seconds in samples.items()}
    findings.series[f"{name}, seconds by bytes"] = {str(size): mean for size, mean in means.items()}
    return fit_line(means)
