"""Overheads of the host: time per operation, per Accelerate hook, and per streamed tensor.

Operations and hooks are timed on modules so narrow that the host's overhead dominates, and on many cores,
because cores differ in speed. PyTorch's allocator has expandable segments, as in emitted plans.
"""

import os
import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any, Final

# Must be set before torch is imported. Emitted plans set it, too.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import transformers
from accelerate import dispatch_model
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from planner.probe.clock import alternate
from planner.probe.core_rotation import CoreRotation
from planner.probe.findings import Findings
from planner.probe.fits import excess, over_cores
from planner.probe.parts import models, streamed

_NEW_TOKENS: Final = 12
#: Calls of `generate()`; the first is a warm-up.
_CALLS_OF_GENERATE: Final = 4
_PROMPT: Final = 16
#: Calls of a turn. A turn is short, so that most turns are not interrupted by another process, and its
#: launches fit in the GPU's queue, so that the host does not wait for the GPU.
_CALLS: Final = 40
#: Smallest and largest number of turns.
_FEWEST, _TURNS = 25, 500
_HEADS: Final = 4


class _CountOps(TorchDispatchMode):
    """Counts operations other than views, as the module graphs do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_ops += not func.is_view
        return func(*args, **(kwargs or {}))


class _Clock(transformers.LogitsProcessor):
    """Times each decode step, from one token's logits to the next, and rotates the core after each step."""

    def __init__(self, device: str, move: CoreRotation) -> None:
        self.device, self.move = device, move
        self.begun: float | None = None
        self.steps: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        _wait(self.device)
        if self.begun is not None:
            self.steps.append(time.perf_counter() - self.begun)
            # One move for each recorded step, so that step i ran on core i modulo the number of cores.
            self.move()
        self.begun = time.perf_counter()
        return scores


def measure(findings: Findings, device: str) -> None:
    """Measure the three overheads on `cpu` or `cuda`."""
    # With so little arithmetic, more threads would only add synchronization.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    move = CoreRotation()
    findings.attempt("host time per operation", lambda f: _operations(f, device, move))
    findings.attempt("host time per hook", lambda f: _hooks(f, device, move))
    tensors = streamed.from_files if device == "cpu" else streamed.from_pinned_memory
    findings.attempt("host time per streamed tensor", lambda f: tensors(f, move))


def _operations(findings: Findings, device: str, move: CoreRotation) -> None:
    """Measure the time per operation: decode steps of `generate()`, divided by the forward's operations.

    The two families are averaged step by step: the median of all their samples would lie between two separate
    groups, and would depend on the outliers of each.
    """
    samples, by_family = [], {}
    for name in ("opt", "llama"):
        model = models.narrow(name, device)
        num_ops = _num_ops(model, device)
        steps = [step / num_ops for step in _steps(model, device, move)]
        ordered = sorted(steps)
        by_family[f"{name}, {num_ops} operations"] = median(steps)
        by_family[f"{name}, the fastest step"] = ordered[0]
        by_family[f"{name}, nine tenths take no longer than"] = ordered[len(ordered) * 9 // 10]
        samples.append(steps)
    findings.series["host time per operation, seconds by model"] = by_family
    findings.quantities["host.op_overhead_s"] = over_cores(
        [mean(steps) for steps in zip(*samples, strict=True)],
        move.num_cores,
        f"decode steps of {models.LAYERS} narrow layers in generate(), by operation, mean of two families",
    )


@torch.no_grad()
def _hooks(findings: Findings, device: str, move: CoreRotation) -> None:
    """Measure the time per hook: a Linear with the hook of `dispatch_model`, less one without it.

    A single module is timed because whole steps with and without hooks differ by less than their variation on
    a busy machine.
    """
    place = 0 if device == "cuda" else "cpu"
    plain, hooked = (torch.nn.Sequential(_linear(device)) for _ in range(2))
    dispatch_model(hooked, {"0": place}, skip_keys="past_key_values", force_hooks=True)
    runs = [_calls(hooked[0], device), _calls(plain[0], device)]

    def move_and_warm_up() -> None:
        move()
        # The first run on another core has cold caches.
        runs[0]()
        _wait(device)

    with_hook, without = alternate(
        runs,
        lambda: _wait(device),
        before=move_and_warm_up,
        budget_s=0.6,
        least=_FEWEST,
        most=_TURNS,
    )
    how = f"{_CALLS} calls of a narrow Linear with an Accelerate hook and without, amid attention"
    findings.quantities["host.hook_overhead_s"] = excess(with_hook, without, _CALLS, how, move.num_cores)


def _linear(device: str) -> torch.nn.Module:
    return torch.nn.Linear(models.NARROW, models.NARROW, device=device, dtype=models.dtype_on(device))


def _calls(module: torch.nn.Module, device: str) -> Callable[[], None]:
    """Calls of a module alternating with attention: hooks in direct succession are faster than in a step."""
    rows = torch.ones(1, 1, models.NARROW, device=device, dtype=models.dtype_on(device))
    heads = rows.view(1, 1, _HEADS, -1).transpose(1, 2)

    def run() -> None:
        for _ in range(_CALLS):
            module(rows)
            scaled_dot_product_attention(heads, heads, heads)

    return run


@torch.no_grad()
def _steps(model: Any, device: str, move: CoreRotation) -> list[float]:
    """Seconds of each decode step of `generate()`, after one warm-up call."""
    ids = torch.ones(1, _PROMPT, dtype=torch.long, device=device)
    samples: list[float] = []
    for turn in range(_CALLS_OF_GENERATE):
        clock = _Clock(device, move)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            logits_processor=transformers.LogitsProcessorList([clock]),
        )
        if turn:
            samples += clock.steps
    return samples


@torch.no_grad()
def _num_ops(model: Any, device: str) -> int:
    """Number of operations of one decode forward."""
    ids = torch.ones(1, _PROMPT, dtype=torch.long, device=device)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    counter = _CountOps()
    with counter:
        model(ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return counter.num_ops


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
