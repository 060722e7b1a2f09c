"""The GPU: memory of a CUDA context, memory bandwidth, and matrix products by dtype and shape."""

from collections.abc import Callable
from statistics import median
from typing import Final

import torch

from planner.probe.findings import Findings
from planner.probe.fits import Measurement, measured
from planner.probe.parts import links

#: Representative model widths, and the rows of the products of a prompt and of a decode step.
_WIDTHS: Final = (4096, 5120)
_PREFILL_ROWS: Final = (512, 2048, 8192)
_DECODE_ROWS: Final = (1, 8, 32)
#: Sizes of the square products.
_SQUARES: Final = (4096, 8192)
_COPY_BYTES: Final = 2**30
#: Bytes of the weights of one decode shape: more than any L2 cache holds.
_WEIGHTS_BYTES: Final = 400 * 2**20
_BUDGET_S: Final = 0.1


def measure(findings: Findings, used_by_others_bytes: int = 0) -> None:
    """Measure the GPU and its links. Must run first in its process, because it measures the CUDA context.

    Args:
        findings: the results are added to it; only a sentence when torch sees no GPU.
        used_by_others_bytes: device memory in use before this process started.
    """
    if not torch.cuda.device_count():
        findings.missing.append(
            f"no GPU is visible to torch {torch.__version__}, although the driver lists one, so GPUs and "
            "links were not measured; check CUDA_VISIBLE_DEVICES, and whether this build of torch supports "
            "GPUs and this driver"
        )
        return
    findings.facts["gpu_name"] = torch.cuda.get_device_name(0)
    findings.facts["num_gpus"] = torch.cuda.device_count()
    findings.attempt("what a CUDA context takes", lambda f: _context(f, used_by_others_bytes))
    findings.attempt("the GPU's memory bandwidth", _memory)
    for dtype in dtypes():
        findings.attempt(f"the GPU's {dtype} matrix rate", _squares(dtype))
    main = "float16" if "float16" in dtypes() else "float32"
    findings.attempt("matrix products of prompts", _prefill(main))
    findings.attempt("matrix products of decode steps", _decode(main))
    findings.attempt("links", links.measure)


def dtypes() -> tuple[str, ...]:
    """The dtypes that the GPU multiplies in hardware; older GPUs emulate bfloat16."""
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return ("float32", "float16", "bfloat16") if native else ("float32", "float16")


def timed(run: Callable[[], object], *, budget_s: float = _BUDGET_S) -> list[float]:
    """Seconds per launch, in each of five batches of launches.

    Several launches between two events keep the launch overhead of the host out of the time of short kernels.
    """
    run()
    single_s = _elapsed(run, 1)
    launches = max(1, min(50, round(budget_s / 5 / max(single_s, 1e-6))))
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
    """Measure the context's memory after products and a few kernels, so that it includes the libraries."""
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
        (
            "gpu.memory_bytes",
            total - used_by_others_bytes,
            "memory of the device, less what other processes use",
        ),
        ("gpu.context_bytes", taken, "context, libraries and loaded kernels of a fresh process"),
    ):
        findings.quantities[path] = Measurement(value=value, spread=0.0, num_samples=1, method=how)


def _memory(findings: Findings) -> None:
    size = min(_COPY_BYTES, torch.cuda.mem_get_info(0)[0] // 8)
    source, target = (torch.ones(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    rates = [2 * size / seconds for seconds in timed(lambda: target.copy_(source))]
    findings.quantities["gpu.memory_bandwidth_bytes_per_s"] = measured(
        rates, f"device copy of {size >> 20} MiB, bytes read and written"
    )


def _squares(dtype: str) -> Callable[[Findings], None]:
    def run(findings: Findings) -> None:
        # Full float32 precision, the default of models.
        torch.backends.cuda.matmul.allow_tf32 = False
        best, rate_by_extent = None, {}
        for extent in _SQUARES:
            left, right = (_random(extent, extent, dtype) for _ in range(2))
            times = timed(lambda a=left, b=right: a @ b)  # type: ignore[misc]
            rates = [2 * extent**3 / seconds for seconds in times]
            rate_by_extent[str(extent)] = median(rates)
            if best is None or median(rates) > best.value:
                best = measured(rates, f"{dtype} product of {extent}x{extent} matrices, sustained")
        if best is not None:
            findings.quantities[f"gpu.flops_per_s.{dtype}"] = best
        findings.series[f"gpu product, {dtype}, FLOP/s by extent"] = rate_by_extent

    return run


def _prefill(dtype: str) -> Callable[[Findings], None]:
    """Measure the rate of a prompt's Linears, as a share of the square product's rate."""

    def run(findings: Findings) -> None:
        peak = findings.quantities[f"gpu.flops_per_s.{dtype}"].value
        shares = {}
        for width in _WIDTHS:
            up, down = _random(4 * width, width, dtype), _random(width, 4 * width, dtype)
            for num_rows in _PREFILL_ROWS:
                rows = _random(num_rows, width, dtype)

                def both(rows: torch.Tensor = rows, up: torch.Tensor = up, down: torch.Tensor = down) -> None:
                    torch.nn.functional.linear(torch.nn.functional.linear(rows, up), down)

                flops = 2 * num_rows * up.numel() * 2
                shares[f"{width}, {num_rows} rows"] = flops / median(timed(both)) / peak
        findings.series[f"prompt's Linears, {dtype}, share of the peak by width"] = shares
        findings.quantities["gpu.gemm_efficiency"] = measured(
            [min(1.0, share) for share in shares.values()],
            f"{dtype} Linears of prompts against the square product",
        )

    return run


def _decode(dtype: str) -> Callable[[Findings], None]:
    """Measure the bandwidth of a decode step's Linears, as a share of a device copy's bandwidth."""

    def run(findings: Findings) -> None:
        peak = findings.quantities["gpu.memory_bandwidth_bytes_per_s"].value
        shares = {}
        for width in _WIDTHS:
            first = _random(4 * width, width, dtype)
            weights = [first, *(first.clone() for _ in range(max(1, _WEIGHTS_BYTES // first.nbytes)))]
            for num_rows in _DECODE_ROWS:
                rows = _random(num_rows, width, dtype)

                def read(rows: torch.Tensor = rows, weights: list[torch.Tensor] = weights) -> None:
                    for weight in weights:
                        torch.nn.functional.linear(rows, weight)

                seconds = median(timed(read))
                shares[f"{width}, {num_rows} rows"] = len(weights) * first.nbytes / seconds / peak
        findings.series[f"decode's Linears, {dtype}, share of the bandwidth by width"] = shares
        findings.quantities["gpu.bandwidth_efficiency"] = measured(
            [min(1.0, share) for share in shares.values()],
            f"{dtype} Linears of decode steps against a device copy",
        )

    return run


def _random(num_rows: int, num_columns: int, dtype: str) -> torch.Tensor:
    return torch.randn(num_rows, num_columns, device="cuda").to(getattr(torch, dtype))
