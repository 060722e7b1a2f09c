"""Measures the constants that the cost model takes as given, on one GPU, with an OPT-13B of random weights.

`python tests/benchmarks/gpu_constants.py OUT.json` prints and writes: host time per operation, per
Accelerate hook and per moved tensor; link bandwidths; what a CUDA context takes; what the caching
allocator reserves beyond what is allocated. A profile's numbers come from here; no test depends on it.
"""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import accelerate
import psutil
import torch
import transformers
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OPTConfig, OPTForCausalLM

GIB = 2**30


class CountOps(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.num_ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_ops += not func.is_view
        return func(*args, **(kwargs or {}))


def seconds(run: Any, repeats: int = 5) -> float:
    """Median time of `run`, the device idle before and after."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def build() -> Any:
    """OPT-13B on the GPU, weights random: small, so that nothing overflows."""
    config = OPTConfig(
        hidden_size=5120,
        ffn_dim=20480,
        num_hidden_layers=40,
        num_attention_heads=40,
        word_embed_proj_dim=5120,
        vocab_size=50272,
        max_position_embeddings=2048,
    )
    with torch.device("meta"):
        model = OPTForCausalLM(config)
    model = model.to(torch.float16).to_empty(device="cuda").eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    model.tie_weights()
    return model


@torch.no_grad()
def steps(model: Any, batch: int, prompt: int = 128) -> dict[str, float]:
    """Prefill and decode forwards, as `generate()` makes them."""
    ids = torch.randint(5, 50000, (batch, prompt), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    prefill = seconds(lambda: model(ids, use_cache=True, logits_to_keep=1), 3)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    token = ids[:, :1]

    def decode() -> None:
        model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)

    decode_s = seconds(decode, 8)
    counter = CountOps()
    with counter:
        decode()
    row = {
        "batch": batch,
        "prefill_s": prefill,
        "decode_s": decode_s,
        "num_ops_decode": counter.num_ops,
        "peak_allocated": torch.cuda.max_memory_allocated(),
        "peak_reserved": torch.cuda.max_memory_reserved(),
    }
    torch.cuda.empty_cache()
    return row


def links() -> dict[str, float]:
    """Copy bandwidths and latency."""
    size = GIB
    pageable, device = (
        torch.empty(size, dtype=torch.uint8),
        torch.empty(size, dtype=torch.uint8, device="cuda"),
    )
    pageable.fill_(1)
    pinned = pageable.pin_memory()
    small = torch.empty(1024, dtype=torch.uint8).pin_memory()
    return {
        "h2d_pinned_bytes_per_s": size / seconds(lambda: device.copy_(pinned)),
        "d2h_pinned_bytes_per_s": size / seconds(lambda: pinned.copy_(device)),
        "h2d_pageable_bytes_per_s": size / seconds(lambda: device.copy_(pageable)),
        "d2h_pageable_bytes_per_s": size / seconds(lambda: pageable.copy_(device)),
        "small_copy_s": seconds(lambda: small.to("cuda"), 50),
    }


def rates() -> dict[str, float]:
    """Matrix rate and device memory bandwidth."""
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    vector = torch.randn(1, 20480, device="cuda", dtype=torch.float16)
    tall = torch.randn(8, 5120, 20480, device="cuda", dtype=torch.float16)

    def gemv() -> None:
        for matrix in tall:
            torch.nn.functional.linear(vector, matrix)

    return {
        "gemm_float16_flops_per_s": 2 * 8192**3 / seconds(lambda: square @ square, 20),
        "gemv_bytes_per_s": tall.nbytes / seconds(gemv, 20),
    }


def offloaded(model: Any, *, pinned: bool) -> dict[str, Any]:
    """All blocks on the CPU, streamed: time per moved tensor."""
    device_map = {"model.decoder.embed_tokens": 0, "model.decoder.embed_positions": 0, "lm_head": 0}
    device_map |= {"model.decoder.final_layer_norm": 0}
    layers = {f"model.decoder.layers.{i}": "cpu" for i in range(40)}
    state = {
        name: (p.cpu().pin_memory() if pinned else p.cpu())
        for name, p in model.state_dict().items()
        if ".layers." in name
    }
    for name, parameter in model.named_parameters():
        if ".layers." in name:
            parameter.data = state[name]
    dispatch_model(
        model, {**device_map, **layers}, main_device=0, state_dict=state, skip_keys="past_key_values"
    )
    rows = [steps(model, batch) for batch in (1, 16)]
    num_bytes = sum(t.nbytes for t in state.values())
    remove_hook_from_module(model, recurse=True)
    return {"rows": rows, "num_tensors": len(state), "num_bytes": num_bytes}


def main(out: Path) -> None:
    """Measure everything and write it."""
    free_before, total = torch.cuda.mem_get_info()
    torch.zeros(1, device="cuda")
    torch.randn(64, 64, device="cuda", dtype=torch.float16) @ torch.randn(64, 64, device="cuda").half()
    free, _ = torch.cuda.mem_get_info()
    process = psutil.Process()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
        "device_total_bytes": total,
        "context_bytes": total - free - torch.cuda.memory_reserved(),
        "used_before_bytes": total - free_before,
        "host_rss_bytes": process.memory_info().rss,
        "links": links(),
        "rates": rates(),
    }
    torch.cuda.empty_cache()
    model = build()
    result["resident"] = [steps(model, batch) for batch in (1, 16, 64)]
    free, _ = torch.cuda.mem_get_info()
    result["context_after_bytes"] = total - free - torch.cuda.memory_reserved()
    names = [n for n, m in model.named_modules() if n and not list(m.children())]
    dispatch_model(model, dict.fromkeys(names, 0), force_hooks=True, skip_keys="past_key_values")
    num_hooks = sum(hasattr(m, "_hf_hook") for m in model.modules())
    result["hooked"] = {"num_hooks": num_hooks, "rows": [steps(model, 1)]}
    remove_hook_from_module(model, recurse=True)
    result["pinned"] = offloaded(model, pinned=True)
    result["host_rss_after_bytes"] = process.memory_info().rss
    out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
