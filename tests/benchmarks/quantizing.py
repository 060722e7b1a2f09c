"""Rates of every formula: ours, the same in plain torch, and a plain copy of the input.

All in one process on one set of weights, at each number of threads; the best of several rounds. Ours goes
through row blocks as a streaming caller does, in a pool of threads; torch has the whole tensor and its own
threads; the copy is numpy's, in the same pool. Reports; decides nothing.
"""

import argparse
import datetime
import math
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from quantize.groups import moq, row_absmax, rows, search, symmetric, zero_inference
from quantize.groups.blocks import Block

_COLUMNS: Final = 8192
#: The share of the weights that the search is timed on: in torch it takes minutes for all of them.
_SEARCHED: Final = 1 / 32
_BLOCK_BYTES: Final = 8 << 20
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Case(NamedTuple):
    """A formula: ours on a block and a buffer for its codes, and plain torch on the whole tensor.

    `share` of the weights is enough to time it.
    """

    name: str
    ours: Callable[[Block, Any], object]
    torch: Callable[[torch.Tensor], object]
    share: float = 1.0


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
    count, first, last = (12, 0.96, 1.01) if bits == 8 else (16, 0.5, 1.06)
    for share in (1.0, *torch.linspace(first, last, count).tolist(), None):
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
            lambda b, o: zero_inference.encode(b, group_size=64, bits=4),
            lambda w: _zero_inference(w, 64, 1, 4),
        ),
        Case(
            "search 8 bit, 128",
            lambda b, o: search.encode(b, codes=o),
            lambda w: _search(w, 128, 8),
            _SEARCHED,
        ),
        Case(
            "search 4 bit, 128",
            lambda b, o: search.encode(b, bits=4, codes=o),
            lambda w: _search(w, 128, 4),
            _SEARCHED,
        ),
    )


def _seconds(act: Callable[[], object], rounds: int) -> float:
    """The shortest of several rounds, after one that compiles and warms."""
    act()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _measure(weight: torch.Tensor, threads: int, rounds: int, pool: ThreadPoolExecutor) -> None:
    raw = weight.view(torch.uint8).numpy()
    given = raw.view({torch.float32: np.float32, torch.float16: np.float16}.get(weight.dtype, np.uint16))
    copied, codes = np.ones_like(given), np.ones(given.shape, np.int8)
    step = 64 * max(1, _BLOCK_BYTES // given.itemsize // _COLUMNS // 64)

    def each(act: Callable[[slice], object], count: int) -> None:
        list(pool.map(act, [slice(i, i + step) for i in range(0, count, step)]))

    for case in _cases():
        count = int(len(given) * case.share)
        gigabytes = count * given.shape[1] * given.itemsize / 1e9
        seconds = [
            _seconds(lambda: each(lambda part: case.ours(given[part], codes[part]), count), rounds),  # noqa: B023
            _seconds(lambda: case.torch(weight[:count]), rounds),  # noqa: B023
            _seconds(lambda: each(lambda part: np.copyto(copied[part], given[part]), count), rounds),  # noqa: B023
        ]
        ours, plain, copy = (gigabytes / s for s in seconds)
        print(
            f"{threads:2}  {str(weight.dtype)[6:]:9} {case.name:28} {ours:6.2f} {plain:6.2f} {copy:6.2f} GB/s"
            f"   {ours / plain:6.1f} × torch   {ours / copy:5.2f} of the copy",
            flush=True,
        )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="of weights, for each dtype")
    parser.add_argument("--threads", default="1,4", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numba", "numpy", "torch"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{datetime.date.today()}, {machine}; {versions}")
    print("threads, dtype, formula, input bytes per second: ours, plain torch, a plain copy")
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        with ThreadPoolExecutor(threads) as pool:
            for dtype in _DTYPES.values():
                num_rows = (options.mib << 20) // dtype.itemsize // _COLUMNS // 64 * 64
                generator = torch.Generator().manual_seed(0)
                weight = torch.randn(num_rows, _COLUMNS, generator=generator).mul_(0.02).to(dtype)
                _measure(weight, threads, options.rounds, pool)


if __name__ == "__main__":
    main()
