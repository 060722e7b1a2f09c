"""The GPU itself: what a context takes, its memory's bandwidth, and matrix products by dtype and shape."""

from collections.abc import Callable
from statistics import median
from typing import Final

import torch

from planner.probe.findings import Findings
from planner.probe.fits import Measurement, measured
from planner.probe.parts import links

#: Model widths whose Linears stand for the rest, and rows of a prompt's and of a decode step's products.
_WIDTHS: Final = (4096, 5120)
_PREFILL_ROWS: Final = (512, 2048, 8192)
_DECODE_ROWS: Final = (1, 8, 32)
#: Largest square product; smaller ones are tried as well, for a small GPU's memory may not hold it.
_SQUARES: Final = (4096, 8192)
_COPY_BYTES: Final = 2**30
#: Weights of one decode shape together: more than any L2 cache.
_WEIGHTS_BYTES: Final = 400 * 2**20
_BUDGET_S: Final = 0.1


def measure(findings: Findings, used_by_others_bytes: int = 0) -> None:
    """Everything and then the links; must run first in its process, since the context is counted.

    Args:
        findings: filled; with a sentence and nothing else where torch sees no GPU, whatever the driver lists.
        used_by_others_bytes: device memory in use before this process began.
    """
    if not torch.cuda.device_count():
        findings.missing.append(
            f"no GPU is visible to torch {torch.__version__}, though the driver lists one, so nothing about "
            "GPUs and links was measured; look at CUDA_VISIBLE_DEVICES, and whether this torch is built for "
            "GPUs and for this driver"
        )
        return
    findings.facts["gpu_name"] = torch.cuda.get_device_name(0)
    findings.facts["num_gpus"] = torch.cuda.device_count()
    findings.attempt("what a CUDA context takes", lambda found: _context(found, used_by_others_bytes))
    findings.attempt("the GPU's memory bandwidth", _memory)
    for dtype in dtypes():
        findings.attempt(f"the GPU's {dtype} matrix rate", _squares(dtype))
    main = "float16" if "float16" in dtypes() else "float32"
    findings.attempt("matrix products of prompts", _prefill(main))
    findings.attempt("matrix products of decode steps", _decode(main))
    findings.attempt("links", links.measure)


def dtypes() -> tuple[str, ...]:
    """Those that the GPU multiplies itself; older ones emulate bfloat16."""
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return ("float32", "float16", "bfloat16") if native else ("float32", "float16")


def timed(run: Callable[[], object], *, budget_s: float = _BUDGET_S) -> list[float]:
    """Seconds of each of a few batches of launches, divided by their number.

    Several launches between two events keep the host's share out of what short kernels take.
    """
    run()
    one = _elapsed(run, 1)
    launches = max(1, min(50, round(budget_s / 5 / max(one, 1e-6))))
    return [_elapsed(run, launches) for _ in range(5)]


def _elapsed(run: Callable[[], object], launches: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(launches):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000 / launches


def _context(findings: Findings, used_by_others_bytes: int) -> None:
    """After products and a few kernels, so that the libraries' share is in it."""
    for dtype in dtypes():
        square = torch.randn(256, 256, device="cuda").to(getattr(torch, dtype))
        torch.nn.functional.softmax(square @ square, dim=-1)
        heads = square.view(1, 4, 64, 256)
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        torch.nn.functional.layer_norm(square, (256,))
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info(0)
    taken = total - free - torch.cuda.memory_reserved(0) - used_by_others_bytes
    for path, value, how in (
        ("gpu.memory_bytes", total - used_by_others_bytes, "what the device has, less what others use"),
        ("gpu.context_bytes", taken, "context, libraries and loaded kernels of a fresh process"),
    ):
        findings.quantities[path] = Measurement(value=value, spread=0.0, num_samples=1, method=how)


def _memory(findings: Findings) -> None:
    size = min(_COPY_BYTES, torch.cuda.mem_get_info(0)[0] // 8)
    source, target = (torch.ones(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    rates = [2 * size / one for one in timed(lambda: target.copy_(source))]
    findings.quantities["gpu.memory_bandwidth_bytes_per_s"] = measured(
        rates, f"device copy of {size >> 20} MiB, bytes read and written"
    )


def _squares(dtype: str) -> Callable[[Findings], None]:
    def run(findings: Findings) -> None:
        # Full float32, as models run unless told otherwise.
        torch.backends.cuda.matmul.allow_tf32 = False
        best, found = None, {}
        for extent in _SQUARES:
            left, right = (_random(extent, extent, dtype) for _ in range(2))
            rates = [2 * extent**3 / one for one in timed(lambda a=left, b=right: a @ b)]  # type: ignore[misc]
            found[str(extent)] = median(rates)
            if best is None or median(rates) > best.value:
                best = measured(rates, f"{dtype} product of {extent}x{extent} matrices, sustained")
        if best is not None:
            findings.quantities[f"gpu.flops_per_s.{dtype}"] = best
        findings.series[f"gpu product, {dtype}, FLOP/s by extent"] = found

    return run


def _prefill(dtype: str) -> Callable[[Findings], None]:
    """Share of the square product's rate that a prompt's Linears reach."""

    def run(findings: Findings) -> None:
        peak = findings.quantities[f"gpu.flops_per_s.{dtype}"].value
        found = {}
        for width in _WIDTHS:
            up, down = _random(4 * width, width, dtype), _random(width, 4 * width, dtype)
            for num_rows in _PREFILL_ROWS:
                rows = _random(num_rows, width, dtype)

                def both(rows: torch.Tensor = rows, up: torch.Tensor = up, down: torch.Tensor = down) -> None:
                    torch.nn.functional.linear(torch.nn.functional.linear(rows, up), down)

                flops = 2 * num_rows * up.numel() * 2
                found[f"{width}, {num_rows} rows"] = flops / median(timed(both)) / peak
        findings.series[f"prompt's Linears, {dtype}, share of the peak by width"] = found
        findings.quantities["gpu.gemm_efficiency"] = measured(
            [min(1.0, one) for one in found.values()],
            f"{dtype} Linears of prompts against the square product",
        )

    return run


def _decode(dtype: str) -> Callable[[Findings], None]:
    """Share of the copy's bandwidth at which a decode step's Linears read their weights."""

    def run(findings: Findings) -> None:
        peak = findings.quantities["gpu.memory_bandwidth_bytes_per_s"].value
        found = {}
        for width in _WIDTHS:
            one = _random(4 * width, width, dtype)
            weights = [one, *(one.clone() for _ in range(max(1, _WEIGHTS_BYTES // one.nbytes)))]
            for num_rows in _DECODE_ROWS:
                rows = _random(num_rows, width, dtype)

                def read(rows: torch.Tensor = rows, weights: list[torch.Tensor] = weights) -> None:
                    for weight in weights:
                        torch.nn.functional.linear(rows, weight)

                seconds = median(timed(read))
                found[f"{width}, {num_rows} rows"] = len(weights) * one.nbytes / seconds / peak
        findings.series[f"decode's Linears, {dtype}, share of the bandwidth by width"] = found
        findings.quantities["gpu.bandwidth_efficiency"] = measured(
            [min(1.0, one) for one in found.values()],
            f"{dtype} Linears of decode steps against a device copy",
        )

    return run


def _random(num_rows: int, num_columns: int, dtype: str) -> torch.Tensor:
    return torch.randn(num_rows, num_columns, device="cuda").to(getattr(torch, dtype))
