"""Generates with the plan in this folder: `python generate.py CHECKPOINT --prompt "Once upon a time"`.

Accelerate copies each module's weights to the device that the plan runs it on. Needs torch, transformers,
accelerate and safetensors. Exit status: 0 done, 3 the checkpoint does not fit the plan, 4 out of memory.
"""

from collections.abc import Iterator
from typing import Any

# First, because it configures torch's allocator.
from generation import DTYPE, EXECUTION, ON_CPU, PLAN, auto_class, check_loaded, main, read_json

# isort: split
import torch
from accelerate import dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    add_hook_to_module,
    attach_align_device_hook_on_blocks,
    remove_hook_from_module,
)
from accelerate.utils import OffloadedWeightsLoader, modeling

DEVICE_MAP = read_json("device_map.json")
MAIN: Any = "cpu" if ON_CPU else int(EXECUTION["main"].removeprefix("gpu:"))
PAGE = 4096


def load(checkpoint: str, offload_folder: str) -> Any:
    """The model, every module placed as in the plan."""
    model, info = auto_class().from_pretrained(
        checkpoint,
        dtype=DTYPE,
        device_map=DEVICE_MAP,
        offload_folder=offload_folder,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    check_loaded(info, checkpoint)
    runs_on_cpu = {p["module"] for p in PLAN["placements"] if p["runs_on"] == "cpu" and MAIN != "cpu"}
    on_cpu = {
        entry for entry in DEVICE_MAP if any(m == entry or m.startswith(f"{entry}.") for m in runs_on_cpu)
    }
    streamed = [name for name, place in DEVICE_MAP.items() if place == "cpu" and MAIN != "cpu"]
    if on_cpu or (streamed and EXECUTION["host_copies"] == "pinned"):
        dispatch_again(model, on_cpu)
    for name, device in PLAN["split_blocks"].items():
        move_scratch(model.get_submodule(name), main_or(device))
    keep_pages()
    return model.eval()


def keep_pages() -> None:
    """Prevent Accelerate from emptying the allocator's cache, so that the next module reuses the memory.

    Accelerate empties it for every weight that it copies, and mapping the memory again takes a quarter of a
    large batch's time. When memory runs out, the allocator unmaps unused memory before it raises an error.
    """
    modeling.clear_device_cache = lambda *_, **__: None


def move_scratch(block: Any, device: Any) -> None:
    """Move buffers that no entry of the map covers, and that are on the CPU, to the block's device."""
    for module in block.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type != "meta" and not hasattr(module, "_hf_hook"):
                module.register_buffer(name, buffer.to(device), persistent=False)


def dispatch_again(model: Any, on_cpu: set[str]) -> None:
    """Replace from_pretrained's hooks: with pinned host copies, and with entries `on_cpu` run on the CPU."""
    index = offload_index(model)
    remove_hook_from_module(model, recurse=True)
    state = {}
    for entry, place in DEVICE_MAP.items():
        if place == "cpu" and entry not in on_cpu:
            module = model.get_submodule(entry)
            for name in {**dict(module.named_parameters()), **dict(module.named_buffers())}:
                owner, _, leaf = f"{entry}.{name}".rpartition(".")
                tensor = getattr(model.get_submodule(owner), leaf)
                if isinstance(tensor, torch.nn.Parameter) and EXECUTION["host_copies"] == "pinned":
                    tensor.data = page_locked(tensor.data)
                state[f"{entry}.{name}"] = tensor.data
    if not on_cpu:
        dispatch_model(
            model,
            DEVICE_MAP,
            main_device=MAIN,
            state_dict=state,
            offload_index=index or None,
            skip_keys=model._skip_keys_device_placement,
        )
        return
    places = {name: "cpu" if name in on_cpu else main_or(place) for name, place in DEVICE_MAP.items()}
    attach_align_device_hook_on_blocks(
        model,
        execution_device={**places, "": MAIN},
        offload={name: place in ("cpu", "disk") and name not in on_cpu for name, place in DEVICE_MAP.items()},
        weights_map=OffloadedWeightsLoader(state_dict=state, index=index, device="cpu"),
        skip_keys=model._skip_keys_device_placement,
    )
    # A block whose parts are listed one by one has no hook of its own that copies its input from the CPU.
    for name, device in PLAN["split_blocks"].items():
        hook = AlignDevicesHook(execution_device=main_or(device), skip_keys=model._skip_keys_device_placement)
        add_hook_to_module(model.get_submodule(name), hook, append=True)


def main_or(place: str | int) -> Any:
    """The device that a module runs on: its own GPU, or the main device when its weights are streamed."""
    if isinstance(place, str) and place.startswith("gpu:"):
        return int(place.removeprefix("gpu:"))
    return MAIN if place in ("cpu", "disk") else place


def offload_index(model: Any) -> dict[str, Any]:
    """Name → file and key of the weights that stay on disk, as from_pretrained recorded them."""
    for module in model.modules():
        for hook in hooks_of(module):
            if getattr(hook, "weights_map", None) is not None:
                index: dict[str, Any] = hook.weights_map.dataset.index
                return {name: entry for name, entry in index.items() if "safetensors_file" in entry}
    return {}


def hooks_of(module: Any) -> Iterator[Any]:
    """The Accelerate hooks on one module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", [hook] if hook is not None else [])


def page_locked(tensor: torch.Tensor) -> torch.Tensor:
    """A page-locked copy of exactly this size, rounded up to whole pages.

    torch's own pin_memory() rounds each allocation up to a power of two, which may double the memory. It is
    used for small tensors; a large one gets pages of its own, which are registered with CUDA.
    """
    if not torch.cuda.is_available() or tensor.is_pinned():
        return tensor
    if tensor.nbytes < 2**20:
        return tensor.pin_memory()
    pages = -(-tensor.nbytes // PAGE) * PAGE
    buffer = torch.empty(pages + PAGE, dtype=torch.uint8)
    start = -buffer.data_ptr() % PAGE
    locked = buffer[start : start + pages]
    if int(torch.cuda.cudart().cudaHostRegister(locked.data_ptr(), pages, 0)) != 0:
        return tensor.pin_memory()
    return locked[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


if __name__ == "__main__":
    main(load, __doc__)
