"""What the host does besides arithmetic: time per operation, per Accelerate hook, per streamed tensor.

Operations and hooks are timed on models so narrow that the host alone takes time; streamed tensors on layers
of real width, so that waiting for each copy takes what it will. The allocator keeps its pages meanwhile, as
in emitted plans.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

# Must be set before torch is imported: emitted plans run so.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import transformers
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import modeling
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from planner.probe.clock import repeat
from planner.probe.findings import Findings
from planner.probe.fits import excess, measured

_LAYERS: Final = 24
_NEW_TOKENS: Final = 12
_PROMPT: Final = 16
_NARROW: Final[dict[str, Any]] = {
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
#: The widest layer that is streamed, and the share of the GPU's memory that it may take with its copies.
_WIDTHS: Final = (5120, 4096, 2048, 1024)
_SHARE: Final = 0.15
_STREAMED_LAYERS: Final = 3


class _CountOps(TorchDispatchMode):
    """Counts operations that are no views, as the graphs do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_ops += not func.is_view
        return func(*args, **(kwargs or {}))


class _Clock(transformers.LogitsProcessor):
    """Notes when each token's logits are there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        _wait(self.device)
        self.times.append(time.perf_counter())
        return scores


def measure(findings: Findings, device: str) -> None:
    """All three, on `cpu` or `cuda`."""
    # More would only wait for each other at arithmetic this small.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    findings.attempt("host time per operation", lambda found: _operations(found, device))
    findings.attempt("host time per hook", lambda found: _hooks(found, device))
    what = "host time per streamed tensor"
    if device == "cpu":
        findings.attempt(what, _read_tensors)
    else:
        findings.attempt(what, _moved_tensors)


def _operations(findings: Findings, device: str) -> None:
    """Decode steps of `generate()`, divided by what the model's forward issues."""
    samples, by_family = [], {}
    for name, model in _models(device).items():
        num_ops = _num_ops(model, device)
        steps = [step / num_ops for step in _steps(model, device)]
        by_family[f"{name}, {num_ops} operations"] = median(steps)
        samples += steps
    findings.series["host time per operation, seconds by model"] = by_family
    findings.quantities["host.op_overhead_s"] = measured(
        samples, f"decode steps of {_LAYERS} narrow layers in generate(), by operation"
    )


def _hooks(findings: Findings, device: str) -> None:
    """The same steps with a hook on every module that owns weights, less those without."""
    model = _models(device)["opt"]
    plain = median(_steps(model, device))
    place = 0 if device == "cuda" else "cpu"
    names = [name for name, module in model.named_modules() if name and not list(module.children())]
    with _dispatched(model, dict.fromkeys(names, place), force_hooks=True):
        count = sum(hasattr(module, "_hf_hook") for module in model.modules())
        hooked = _steps(model, device)
    findings.quantities["host.hook_overhead_s"] = excess(
        hooked, plain, count, f"decode steps with {count} Accelerate hooks and without"
    )


@torch.no_grad()
def _moved_tensors(findings: Findings) -> None:
    """Layers streamed from pinned memory: a forward, less the same one resident and the bare copies."""
    width = _width()
    model = _opt(width, _STREAMED_LAYERS, "cuda", torch.float16)
    layers = model.model.decoder.layers
    ids = torch.ones(1, 1, dtype=torch.long, device="cuda")
    names = [name for name, module in model.named_modules() if name and not list(module.children())]
    kept = [name for name in names if ".layers." not in name]
    with _dispatched(model, dict.fromkeys(names, 0), force_hooks=True):
        resident = median(repeat(lambda: model(ids), torch.cuda.synchronize))
    # As the emitted script does.
    modeling.clear_device_cache = lambda *_, **__: None
    state = {
        f"model.decoder.layers.{name}": parameter.data.cpu().pin_memory()
        for name, parameter in layers.named_parameters()
    }
    copies = median(repeat(lambda: [one.to("cuda") for one in state.values()], torch.cuda.synchronize))
    for name, parameter in layers.named_parameters():
        parameter.data = state[f"model.decoder.layers.{name}"]
    places: dict[str, Any] = dict.fromkeys(kept, 0)
    places |= {f"model.decoder.layers.{index}": "cpu" for index in range(_STREAMED_LAYERS)}
    with _dispatched(model, places, main_device=0, state_dict=state):
        steps = repeat(lambda: model(ids), torch.cuda.synchronize, budget_s=1.0, least=5)
    findings.quantities["host.tensor_move_overhead_s"] = excess(
        steps,
        resident + copies,
        len(state),
        f"{_STREAMED_LAYERS} layers of width {width}, {len(state)} pinned tensors, beyond their copies",
    )


@torch.no_grad()
def _read_tensors(findings: Findings) -> None:
    """Narrow layers read from files in the page cache: a forward, less the same one in memory."""
    model = _models("cpu")["opt"]
    ids = torch.ones(1, 1, dtype=torch.long)
    names = [name for name, module in model.named_modules() if name and not list(module.children())]
    with _dispatched(model, dict.fromkeys(names, "cpu"), force_hooks=True):
        resident = median(repeat(lambda: model(ids)))
    with tempfile.TemporaryDirectory(prefix="probe-") as scratch:
        state = model.state_dict()
        file = str(Path(scratch) / "layers.safetensors")
        save_file({name: one for name, one in state.items() if ".layers." in name}, file)
        index = {
            name: {"safetensors_file": file, "weight_name": name, "dtype": "float32"}
            for name in state
            if ".layers." in name
        }
        places: dict[str, Any] = {name: "cpu" for name in names if ".layers." not in name}
        places |= {f"model.decoder.layers.{number}": "disk" for number in range(_LAYERS)}
        with _dispatched(model, places, main_device="cpu", offload_index=index, offload_dir=scratch):
            steps = repeat(lambda: model(ids), budget_s=1.0, least=5)
    findings.quantities["host.tensor_move_overhead_s"] = excess(
        steps,
        resident,
        len(index),
        f"{len(index)} small tensors of files in the page cache, each fetched by Accelerate",
    )


@contextmanager
def _dispatched(model: Any, places: dict[str, Any], **options: Any) -> Iterator[None]:
    """Accelerate's hooks for a while."""
    dispatch_model(model, places, skip_keys="past_key_values", **options)
    try:
        yield
    finally:
        remove_hook_from_module(model, recurse=True)


@torch.no_grad()
def _steps(model: Any, device: str) -> list[float]:
    """Seconds of each decode step of `generate()`, after one call that is not counted."""
    ids = torch.ones(1, _PROMPT, dtype=torch.long, device=device)
    found: list[float] = []
    for turn in range(3):
        clock = _Clock(device)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            logits_processor=transformers.LogitsProcessorList([clock]),
        )
        if turn:
            found += [later - earlier for earlier, later in pairwise(clock.times)]
    return found


@torch.no_grad()
def _num_ops(model: Any, device: str) -> int:
    """Operations of one decode forward."""
    ids = torch.ones(1, _PROMPT, dtype=torch.long, device=device)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    counter = _CountOps()
    with counter:
        model(ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return counter.num_ops


def _models(device: str) -> dict[str, Any]:
    """Narrow models of two families whose blocks are made of different operations."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    llama = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
        **_NARROW,
    )
    return {
        "opt": _opt(64, _LAYERS, device, dtype),
        "llama": _built(transformers.LlamaForCausalLM, llama, device, dtype),
    }


def _opt(width: int, num_layers: int, device: str, dtype: torch.dtype) -> Any:
    config = transformers.OPTConfig(
        hidden_size=width,
        ffn_dim=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, width // 64),
        word_embed_proj_dim=width,
        max_position_embeddings=256,
        **_NARROW,
    )
    return _built(transformers.OPTForCausalLM, config, device, dtype)


def _built(model_class: Any, config: Any, device: str, dtype: torch.dtype) -> Any:
    """With weights small enough that nothing overflows; made where they stay."""
    with torch.device("meta"):
        model = model_class(config)
    model = model.to(dtype).to_empty(device=device).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = torch.ones_like(module.inv_freq, dtype=torch.float32)
    model.tie_weights()
    return model


def _width() -> int:
    """The widest whose layers, beside their copies, take a small share of the GPU."""
    free, _ = torch.cuda.mem_get_info(0)
    for width in _WIDTHS:
        if 2 * _STREAMED_LAYERS * 12 * width * width * 2 < _SHARE * free:
            return width
    return _WIDTHS[-1]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
