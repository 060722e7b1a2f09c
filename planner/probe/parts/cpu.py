"""Matrix products on the processor, by dtype: many rows for the rate, one row for the memory's bandwidth."""

from collections.abc import Callable
from typing import Final

import torch

from planner.probe.clock import repeat
from planner.probe.findings import Findings
from planner.probe.fits import rate

DTYPES: Final = ("float32", "bfloat16", "float16")
#: A prompt's tokens through a Linear: enough rows that arithmetic bounds it.
_ROWS: Final = 128
_INPUTS, _OUTPUTS = 2048, 8192
#: Together larger than any cache in use.
_STREAMED_BYTES: Final = 512 * 2**20


def measure(findings: Findings) -> None:
    """Rates by dtype, and the bandwidth that a matrix-vector product reaches."""
    for dtype in DTYPES:
        findings.attempt(f"the CPU's {dtype} matrix rate", _product(dtype))
        findings.attempt(f"the CPU's {dtype} matrix-vector rate", _vector(dtype))


def _product(dtype: str) -> Callable[[Findings], None]:
    def run(findings: Findings) -> None:
        weight, rows = _random(_OUTPUTS, _INPUTS, dtype), _random(_ROWS, _INPUTS, dtype)
        seconds = repeat(lambda: torch.nn.functional.linear(rows, weight))
        how = f"{dtype} Linear {_INPUTS}x{_OUTPUTS}, {_ROWS} rows, {torch.get_num_threads()} threads"
        findings.quantities[f"host.flops_per_s.{dtype}"] = rate(2 * _ROWS * _INPUTS * _OUTPUTS, seconds, how)

    return run


def _vector(dtype: str) -> Callable[[Findings], None]:
    def run(findings: Findings) -> None:
        itemsize = getattr(torch, dtype).itemsize
        count = _STREAMED_BYTES // (_INPUTS * _OUTPUTS * itemsize)
        one = _random(_OUTPUTS, _INPUTS, dtype)
        weights = [one, *(one.clone() for _ in range(count - 1))]
        found = {}
        for num_rows in (1, 8, 32):
            rows = _random(num_rows, _INPUTS, dtype)
            seconds = repeat(lambda rows=rows: [torch.nn.functional.linear(rows, w) for w in weights])  # type: ignore[misc]
            found[num_rows] = rate(
                count * one.nbytes,
                seconds,
                f"{dtype} Linear {_INPUTS}x{_OUTPUTS} at one row reads its weights",
            )
        findings.quantities[f"cpu_vector_bytes_per_s.{dtype}"] = found[1]
        findings.series[f"cpu weights read, {dtype}, bytes/s by rows"] = {
            str(num_rows): one.value for num_rows, one in found.items()
        }

    return run


def _random(num_rows: int, num_columns: int, dtype: str) -> torch.Tensor:
    return torch.randn(num_rows, num_columns).to(getattr(torch, dtype))
