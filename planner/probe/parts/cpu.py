"""Matrix products on the processor, by dtype: many rows for the rate, one row for the memory's bandwidth.

Between them libraries reach less than either allows: on an EPYC a float32 product of eight rows took 2.5
times as long as reading its weights. So a few counts of rows are measured, too. And attention of one query,
as in a decode step, converts what it reads: there a 16-bit cache at a fourth of the memory's bandwidth, at
any size.

Types take turns, so that no type's weights stay in a cache until it is their turn again. Whether a type is
emulated is told by one thread alone: threads wait for the last of them, and on a busy machine that one is
late by more than the types differ.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from planner.probe.clock import alternate, repeat
from planner.probe.findings import Findings
from planner.probe.fits import Measurement, rate

DTYPES: Final = ("float32", "bfloat16", "float16")
#: Tokens of one short prompt through a Linear, and enough that more of them are no faster: on an EPYC 512
#: rows reached 1.5 times the float32 rate of 128.
_PROMPT_ROWS: Final = (128, 512)
_INPUTS, _OUTPUTS = 2048, 8192
#: Rows of a decode step → time for all types.
_VECTOR_ROWS: Final = {1: 0.6, 4: 0.2, 8: 0.2, 32: 0.2}
#: Batch, heads, tokens and features of a head of one layer's cache.
_CACHE: Final = (8, 16, 256, 128)
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
    dtypes = list(weights)
    weights.clear()
    findings.attempt("the CPU's attention", lambda found: _attention(found, dtypes))


def _product(dtype: str, weights: dict[str, list[torch.Tensor]]) -> Callable[[Findings], None]:
    """Many rows; if the type works at all, its weights are kept for what follows."""

    def run(findings: Findings) -> None:
        weight = _random(dtype, _OUTPUTS, _INPUTS)
        for num_rows in _PROMPT_ROWS:
            seconds = repeat(_reading([weight], num_rows, dtype))
            how = f"{_named(dtype)}, {num_rows} rows, {torch.get_num_threads()} threads"
            found = rate(2 * num_rows * weight.numel(), seconds, how)
            findings.quantities[_few(dtype, num_rows)] = found
        findings.quantities[f"host.flops_per_s.{dtype}"] = found
        weights[dtype] = _copies(weight)

    return run


def _vectors(findings: Findings, weights: Mapping[str, Sequence[torch.Tensor]]) -> None:
    for num_rows, budget_s in _VECTOR_ROWS.items():
        runs = [_reading(some, num_rows, dtype) for dtype, some in weights.items()]
        for (dtype, some), seconds in zip(weights.items(), alternate(runs, budget_s=budget_s), strict=True):
            if num_rows == 1:
                how = f"{_named(dtype)} at one row reads its weights"
                one_row = rate(sum(weight.nbytes for weight in some), seconds, how)
                findings.quantities[f"host.gemv_bytes_per_s.{dtype}"] = one_row
            else:
                flops = 2 * num_rows * sum(weight.numel() for weight in some)
                how = f"{_named(dtype)}, {num_rows} rows, its weights from memory"
                findings.quantities[_few(dtype, num_rows)] = rate(flops, seconds, how)


def _attention(findings: Findings, dtypes: Sequence[str]) -> None:
    """Keys and values of enough layers that none is still in a cache when it is read again."""
    batch, num_heads, _, width = _CACHE
    caches = {dtype: _copies(_random(dtype, 2, *_CACHE)) for dtype in dtypes}
    runs = [_attending(caches[dtype], _random(dtype, batch, num_heads, 1, width)) for dtype in dtypes]
    for dtype, seconds in zip(dtypes, alternate(runs), strict=True):
        num_bytes = sum(layer.nbytes for layer in caches[dtype])
        how = f"{dtype} attention of one query reads keys and values of {'x'.join(map(str, _CACHE))}"
        findings.quantities[f"host.attention_bytes_per_s.{dtype}"] = rate(num_bytes, seconds, how)


def _one_thread(findings: Findings, dtypes: list[str]) -> None:
    """The fastest of many runs, which nothing else disturbed."""
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


def _copies(one: torch.Tensor) -> list[torch.Tensor]:
    """It and so many copies that they do not stay in a cache."""
    return [one, *(one.clone() for _ in range(_STREAMED_BYTES // one.nbytes - 1))]


def _few(dtype: str, num_rows: int) -> str:
    return f"host.few_rows_flops_per_s.{dtype}.{num_rows}"


def _named(dtype: str) -> str:
    return f"{dtype} Linear {_INPUTS}x{_OUTPUTS}"


def _random(dtype: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(getattr(torch, dtype))
