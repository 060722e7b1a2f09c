"""Rates of every formula: ours, the same in plain torch, and a plain copy of the input.

`python tests/benchmarks/quantizing.py [--mib 512] [--threads 1,4] [--rounds 7] [--out OUT]`. All in one
process on one set of weights that no cache holds, at each number of threads, on as many CPUs; ours, the copy
and torch take turns, and the best round of each counts. Ours goes through row blocks as a streaming caller
does, in a pool of threads, into buffers that are there; the copy is numpy's, of the same blocks in the same
pool; torch has a part of the weights as one tensor, and its own threads. Writes a table; decides nothing.
"""

import argparse
import datetime
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from quantize.groups import moq, row_absmax, rows, search, symmetric, zero_inference
from quantize.groups.blocks import Block

_COLUMNS: Final = 8192
#: The share of the weights that torch is given: all of them take minutes, and its rate is no better.
_TORCH_SHARE: Final = 1 / 8
_SEARCH_SHARE: Final = 1 / 64
#: torch's share of the rounds.
_TORCH_ROUNDS: Final = 3
_BLOCK_BYTES: Final = 8 << 20
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Case(NamedTuple):
    """A formula: ours on a block and a buffer for its codes, and plain torch on `share` of the weights."""

    name: str
    ours: Callable[[Block, Any], object]
    torch: Callable[[torch.Tensor], object]
    share: float = _TORCH_SHARE


def _moq(weight: torch.Tensor, group: int) -> torch.Tensor:
    flat = weight.float().view(-1, group)
    factor = 256 / (2 * flat.abs().amax(1, keepdim=True) + 1e-5)
    return (flat * factor).round().clamp(-128, 127).to(torch.int8)


def _rows(weight: torch.Tensor, group: int) -> torch.Tensor:
    flat = weight.view(-1, group)
    scale = flat.abs().amax(1, keepdim=True).float() * 2 / 256
    return (flat / scale).round().clamp(-128, 127).to(torch.int8)


def _symmetric(weight: torch.Tensor, group: int, bits: int = 8) -> torch.Tensor:
    flat, half = weight.view(-1, group), 1 << bits - 1
    scale = flat.abs().amax(1, keepdim=True) / (half - 0.5)
    return (flat / scale).clamp(-half, half - 1).round().to(torch.int8)


def _zero_inference(weight: torch.Tensor, group: int, dim: int, bits: int) -> torch.Tensor:
    top = (1 << bits) - 1
    grouped = weight.unflatten(dim, (-1, group))
    low, high = grouped.amin(dim + 1, keepdim=True), grouped.amax(dim + 1, keepdim=True)
    codes = ((grouped - low) * (top / (high - low))).clamp(0, top).round().to(torch.uint8).view(weight.shape)
    return codes if bits == 8 else codes[..., 0::2] << 4 | codes[..., 1::2]


def _row_absmax(weight: torch.Tensor) -> torch.Tensor:
    half = weight.half()
    return (half * (127 / half.abs().amax(1, keepdim=True).float())).round().to(torch.int8)


def _search(weight: torch.Tensor, group: int, bits: int) -> torch.Tensor:
    flat, half = weight.float().view(-1, group), 1 << bits - 1
    covering = flat.abs().amax(1, keepdim=True) / (half - 0.5)
    best, least, codes = covering, torch.full_like(covering, math.inf), flat
    for share in (*search.SHARES[bits].tolist(), None):
        fitted = (flat * codes).sum(1, keepdim=True) / (codes * codes).sum(1, keepdim=True)
        scale = (fitted if share is None else covering * share).to(weight.dtype).float()
        tried = (flat / scale).clamp(-half, half - 1).round()
        error = (flat - tried * scale).square().sum(1, keepdim=True)
        is_better = error < least
        least, best = torch.where(is_better, error, least), torch.where(is_better, scale, best)
        codes = torch.where(is_better, tried, codes)
    return codes.to(torch.int8)


def _cases() -> tuple[Case, ...]:
    group = 64 * _COLUMNS
    return (
        Case(
            "moq, 512 Ki per group",
            lambda b, o: moq.encode(b, group_numel=group, codes=o),
            lambda w: _moq(w, group),
        ),
        Case(
            "rows", lambda b, o: rows.encode(b, group_numel=_COLUMNS, codes=o), lambda w: _rows(w, _COLUMNS)
        ),
        Case("groups of 128", lambda b, o: rows.encode(b, group_numel=128, codes=o), lambda w: _rows(w, 128)),
        Case(
            "symmetric, groups of 128",
            lambda b, o: symmetric.encode(b, codes=o),
            lambda w: _symmetric(w, 128),
        ),
        Case(
            "symmetric, rows",
            lambda b, o: symmetric.encode(b, group_size=None, codes=o),
            lambda w: _symmetric(w, _COLUMNS),
        ),
        Case("row-absmax", lambda b, o: row_absmax.encode(b, codes=o), _row_absmax),
        Case(
            "zero-inference 8 bit, dim 1",
            lambda b, o: zero_inference.encode(b, group_size=64, codes=o.view(np.uint8)),
            lambda w: _zero_inference(w, 64, 1, 8),
        ),
        Case(
            "zero-inference 8 bit, dim 0",
            lambda b, o: zero_inference.encode(b, group_size=64, dim=0, codes=o.view(np.uint8)),
            lambda w: _zero_inference(w, 64, 0, 8),
        ),
        Case(
            "zero-inference 4 bit, dim 1",
            lambda b, o: zero_inference.encode(b, group_size=64, bits=4, codes=_halved(o)),
            lambda w: _zero_inference(w, 64, 1, 4),
        ),
        Case(
            "search 8 bit, 128",
            lambda b, o: search.encode(b, codes=o),
            lambda w: _search(w, 128, 8),
            _SEARCH_SHARE,
        ),
        Case(
            "search 4 bit, 128",
            lambda b, o: search.encode(b, bits=4, codes=o),
            lambda w: _search(w, 128, 4),
            _SEARCH_SHARE,
        ),
    )


def _halved(codes: Any) -> Any:
    """A buffer for two codes to a byte."""
    return codes.reshape(-1)[: codes.size // 2].view(np.uint8).reshape(len(codes), -1)


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _measure(
    weight: torch.Tensor, rounds: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[str, list[float]]]:
    """Each case's name, and bytes of weights per second: ours, the copy, torch."""
    raw = weight.view(torch.uint8).numpy()
    given = raw.view({torch.float32: np.float32, torch.float16: np.float16}.get(weight.dtype, np.uint16))
    copied, codes = np.ones_like(given), np.ones(given.shape, np.int8)
    step = 64 * max(1, _BLOCK_BYTES // given.itemsize // _COLUMNS // 64)
    parts = [slice(i, i + step) for i in range(0, len(given), step)]
    for case in _cases():
        some = weight[: int(len(given) * case.share)]
        acts: tuple[Callable[[], object], ...] = (
            lambda: list(pool.map(lambda part: case.ours(given[part], codes[part]), parts)),  # noqa: B023
            lambda: list(pool.map(lambda part: np.copyto(copied[part], given[part]), parts)),
            lambda: case.torch(some),  # noqa: B023
        )
        # The first round, which compiles and warms, does not count.
        taken = [[_seconds(act) for act in acts[: 3 if r <= _TORCH_ROUNDS else 2]] for r in range(rounds + 1)]
        best = [min(t[i] for t in taken[1:] if i < len(t)) for i in range(3)]
        yield case.name, [raw.nbytes / best[0], raw.nbytes / best[1], some.nbytes / best[2]]


def _tables(mib: int, counts: list[int], rounds: int) -> Iterator[str]:
    allowed = sorted(os.sched_getaffinity(0))
    for threads in counts:
        os.sched_setaffinity(0, allowed[:threads])
        torch.set_num_threads(threads)
        yield f"\n## {threads} thread{'s' if threads > 1 else ''}\n"
        yield "| weights | formula | ours GB/s | copy GB/s | torch GB/s | ours / copy | ours / torch |"
        yield "|---|---|---|---|---|---|---|"
        with ThreadPoolExecutor(threads) as pool:
            for dtype in _DTYPES.values():
                num_rows = (mib << 20) // dtype.itemsize // _COLUMNS // 64 * 64
                generator = torch.Generator().manual_seed(0)
                weight = torch.randn(num_rows, _COLUMNS, generator=generator).mul_(0.02).to(dtype)
                for name, (ours, copy, plain) in _measure(weight, rounds, pool):
                    rates = " | ".join(f"{rate / 1e9:.2f}" for rate in (ours, copy, plain))
                    yield (
                        f"| {str(weight.dtype)[6:]} | {name} | {rates} | {ours / copy:.2f} "
                        f"| {ours / plain:.1f} |"
                    )
    os.sched_setaffinity(0, allowed)


def _machine(mib: int) -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    cached = cache.read_text().strip() if cache.exists() else "unknown"
    versions = ", ".join(f"{name} {version(name)}" for name in ("numba", "llvmlite", "numpy", "torch"))
    return (
        f"- {platform.machine()}, {os.cpu_count()} CPUs ({models[0].split(': ')[1] if models else '?'}), "
        f"L3 {cached}, load before {os.getloadavg()[0]:.1f}\n"
        f"- Python {platform.python_version()}, {versions}\n"
        f"- {mib} MiB of weights for each dtype, so a copy passes over {2 * mib} MiB"
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="of weights, for each dtype")
    parser.add_argument("--threads", default="1,4", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table as well")
    options = parser.parse_args()
    lines = [f"# Quantizing, {datetime.date.today()}\n", _machine(options.mib)]
    print(*lines, sep="\n")
    for line in _tables(options.mib, [int(n) for n in options.threads.split(",")], options.rounds):
        print(line, flush=True)
        lines.append(line)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
