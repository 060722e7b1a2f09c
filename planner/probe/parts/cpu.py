"""Matrix products on the processor, by dtype: many rows for the compute rate, one row for memory bandwidth.

Between one row and many rows, libraries are slower than both limits: on an EPYC a float32 product of eight
rows took 2.5 times as long as reading its weights. A few numbers of rows in between are therefore measured,
too. Attention of one query, as in a decode step, converts the cache's dtype: on that machine it read a 16-bit
cache at a fourth of the memory bandwidth, at any size.

The dtypes are measured in alternation, so that the weights of a dtype have left the processor's caches when
it is measured again. Emulation of a dtype is detected with one thread only: with several threads a product
ends with the last thread, and on a busy machine that thread's delay exceeds the difference of the dtypes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from planner.probe.clock import alternate, repeat
from planner.probe.findings import Findings
from planner.probe.fits import Measurement, rate

DTYPES: Final = ("float32", "bfloat16", "float16")
#: Rows of a short prompt, and a number of rows beyond which the rate no longer grows: on an EPYC the float32
#: rate at 512 rows was 1.5 times that at 128.
_PROMPT_ROWS: Final = (128, 512)
_INPUTS, _OUTPUTS = 2048, 8192
#: Rows of a decode step → time budget in seconds for all dtypes together.
_VECTOR_ROWS: Final = {1: 0.6, 4: 0.2, 8: 0.2, 32: 0.2}
#: Shape of one layer's keys or values: batch, heads, tokens, features of a head.
_CACHE: Final = (8, 16, 256, 128)
#: Bytes of each dtype's weights; larger together than the processor's caches.
_STREAMED_BYTES: Final = 256 * 2**20


def measure(findings: Findings, num_cores: int) -> None:
    """Measure matrix, matrix-vector and attention rates by dtype, with `num_cores` threads."""
    torch.set_num_threads(num_cores)
    weights: dict[str, list[torch.Tensor]] = {}
    for dtype in DTYPES:
        findings.attempt(f"the CPU's {dtype} matrix rate", _product(dtype, weights))
    findings.attempt("the CPU's matrix-vector rates", lambda f: _vectors(f, weights))
    findings.attempt("one thread's matrix-vector rates", lambda f: _one_thread(f, list(weights)))
    dtypes = list(weights)
    weights.clear()
    findings.attempt("the CPU's attention", lambda f: _attention(f, dtypes))


def _product(dtype: str, weights: dict[str, list[torch.Tensor]]) -> Callable[[Findings], None]:
    """Measure products of many rows; when the dtype works, its weights are kept for the next measurements."""

    def run(findings: Findings) -> None:
        weight = _random(dtype, _OUTPUTS, _INPUTS)
        for num_rows in _PROMPT_ROWS:
            seconds = repeat(_reading([weight], num_rows, dtype))
            how = f"{_named(dtype)}, {num_rows} rows, {torch.get_num_threads()} threads"
            flops_per_s = rate(2 * num_rows * weight.numel(), seconds, how)
            findings.quantities[_few_rows_path(dtype, num_rows)] = flops_per_s
        findings.quantities[f"host.flops_per_s.{dtype}"] = flops_per_s
        weights[dtype] = _copies(weight)

    return run


def _vectors(findings: Findings, weights: Mapping[str, Sequence[torch.Tensor]]) -> None:
    for num_rows, budget_s in _VECTOR_ROWS.items():
        runs = [_reading(copies, num_rows, dtype) for dtype, copies in weights.items()]
        times = alternate(runs, budget_s=budget_s)
        for (dtype, copies), seconds in zip(weights.items(), times, strict=True):
            if num_rows == 1:
                how = f"{_named(dtype)} at one row reads its weights"
                one_row = rate(sum(weight.nbytes for weight in copies), seconds, how)
                findings.quantities[f"host.gemv_bytes_per_s.{dtype}"] = one_row
            else:
                flops = 2 * num_rows * sum(weight.numel() for weight in copies)
                how = f"{_named(dtype)}, {num_rows} rows, its weights from memory"
                findings.quantities[_few_rows_path(dtype, num_rows)] = rate(flops, seconds, how)


def _attention(findings: Findings, dtypes: Sequence[str]) -> None:
    """Measure attention of one query over so many layers that no layer is in a processor cache when read."""
    batch, num_heads, _, width = _CACHE
    caches = {dtype: _copies(_random(dtype, 2, *_CACHE)) for dtype in dtypes}
    runs = [_attending(caches[dtype], _random(dtype, batch, num_heads, 1, width)) for dtype in dtypes]
    for dtype, seconds in zip(dtypes, alternate(runs), strict=True):
        num_bytes = sum(layer.nbytes for layer in caches[dtype])
        how = f"{dtype} attention of one query reads keys and values of {'x'.join(map(str, _CACHE))}"
        findings.quantities[f"host.attention_bytes_per_s.{dtype}"] = rate(num_bytes, seconds, how)


def _one_thread(findings: Findings, dtypes: list[str]) -> None:
    """Measure matrix-vector products of one thread; the fastest of many runs is the least disturbed one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = {dtype: _random(dtype, _INPUTS, _INPUTS) for dtype in dtypes}
    runs = [_reading([weight], 1, dtype) for dtype, weight in weights.items()]
    for (dtype, weight), seconds in zip(weights.items(), alternate(runs, most=200), strict=True):
        findings.quantities[f"cpu_thread_bytes_per_s.{dtype}"] = Measurement(
            value=weight.nbytes / min(seconds),
            spread=0.0,
            num_samples=len(seconds),
            method=f"the fastest {dtype} Linear {_INPUTS}x{_INPUTS} of one thread at one row",
        )
    torch.set_num_threads(num_threads)


def _reading(weights: Sequence[torch.Tensor], num_rows: int, dtype: str) -> Callable[[], object]:
    rows = _random(dtype, num_rows, _INPUTS)
    return lambda: [linear(rows, weight) for weight in weights]


def _attending(layers: Sequence[torch.Tensor], query: torch.Tensor) -> Callable[[], object]:
    return lambda: [scaled_dot_product_attention(query, *layer) for layer in layers]


def _copies(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor and copies of it, `_STREAMED_BYTES` in total."""
    return [tensor, *(tensor.clone() for _ in range(_STREAMED_BYTES // tensor.nbytes - 1))]


def _few_rows_path(dtype: str, num_rows: int) -> str:
    return f"host.few_rows_flops_per_s.{dtype}.{num_rows}"


def _named(dtype: str) -> str:
    return f"{dtype} Linear {_INPUTS}x{_OUTPUTS}"


def _random(dtype: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(getattr(torch, dtype))
