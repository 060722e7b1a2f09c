"""Matrix products on the processor, by dtype: many rows for the rate, one row for the memory's bandwidth.

Matrix-vector products of all types take turns, so that no type's weights stay in a cache until it is their
turn again. Whether a type is emulated is told by one thread alone: threads wait for the last of them, and on
a busy machine that one is late by more than the types differ.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch.nn.functional import linear

from planner.probe.clock import alternate, repeat
from planner.probe.findings import Findings
from planner.probe.fits import Measurement, rate

DTYPES: Final = ("float32", "bfloat16", "float16")
#: A prompt's tokens through a Linear: enough rows that arithmetic bounds it.
_ROWS: Final = 128
_INPUTS, _OUTPUTS = 2048, 8192
#: Rows of a decode step → time for all types. One row is a number of the profile, the others are details.
_VECTOR_ROWS: Final = {1: 0.6, 8: 0.25, 32: 0.25}
#: Of each type; together larger than any cache in use.
_STREAMED_BYTES: Final = 256 * 2**20


def measure(findings: Findings, num_cores: int) -> None:
    """Rates by dtype, and the bandwidth that a matrix-vector product reaches, with `num_cores` threads."""
    torch.set_num_threads(num_cores)
    weights: dict[str, list[torch.Tensor]] = {}
    for dtype in DTYPES:
        findings.attempt(f"the CPU's {dtype} matrix rate", _product(dtype, weights))
    findings.attempt("the CPU's matrix-vector rates", lambda found: _vectors(found, weights))
    findings.attempt("one thread's matrix-vector rates", lambda found: _one_thread(found, list(weights)))


def _product(dtype: str, weights: dict[str, list[torch.Tensor]]) -> Callable[[Findings], None]:
    """Many rows; if the type works at all, its weights are kept for what follows."""

    def run(findings: Findings) -> None:
        weight, rows = _random(_OUTPUTS, _INPUTS, dtype), _random(_ROWS, _INPUTS, dtype)
        seconds = repeat(lambda: linear(rows, weight))
        how = f"{dtype} Linear {_INPUTS}x{_OUTPUTS}, {_ROWS} rows, {torch.get_num_threads()} threads"
        findings.quantities[f"host.flops_per_s.{dtype}"] = rate(2 * _ROWS * _INPUTS * _OUTPUTS, seconds, how)
        count = _STREAMED_BYTES // weight.nbytes
        weights[dtype] = [weight, *(weight.clone() for _ in range(count - 1))]

    return run


def _vectors(findings: Findings, weights: dict[str, list[torch.Tensor]]) -> None:
    for num_rows, budget_s in _VECTOR_ROWS.items():
        runs = [_reading(some, num_rows, dtype) for dtype, some in weights.items()]
        for (dtype, some), seconds in zip(weights.items(), alternate(runs, budget_s=budget_s), strict=True):
            found = rate(
                sum(weight.nbytes for weight in some),
                seconds,
                f"{dtype} Linear {_INPUTS}x{_OUTPUTS} at one row reads its weights",
            )
            series = findings.series.setdefault(f"cpu weights read, {dtype}, bytes/s by rows", {})
            series[str(num_rows)] = found.value
            if num_rows == 1:
                findings.quantities[f"host.gemv_bytes_per_s.{dtype}"] = found


def _one_thread(findings: Findings, dtypes: list[str]) -> None:
    """The fastest of many runs, which nothing else disturbed."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = {dtype: _random(_INPUTS, _INPUTS, dtype) for dtype in dtypes}
    runs = [_reading([weight], 1, dtype) for dtype, weight in weights.items()]
    for (dtype, weight), seconds in zip(weights.items(), alternate(runs, most=200), strict=True):
        findings.quantities[f"cpu_thread_bytes_per_s.{dtype}"] = Measurement(
            value=weight.nbytes / min(seconds),
            spread=0.0,
            num_samples=len(seconds),
            method=f"the fastest {dtype} Linear {_INPUTS}x{_INPUTS} of one thread at one row",
        )
    torch.set_num_threads(num_threads)


def _reading(weights: list[torch.Tensor], num_rows: int, dtype: str) -> Callable[[], object]:
    rows = _random(num_rows, _INPUTS, dtype)
    return lambda: [linear(rows, weight) for weight in weights]


def _random(num_rows: int, num_columns: int, dtype: str) -> torch.Tensor:
    return torch.randn(num_rows, num_columns).to(getattr(torch, dtype))
