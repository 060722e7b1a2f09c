"""The device map that `from_pretrained(device_map="auto")` would choose on the machine of a profile.

Transformers' own functions compute it for a model on the meta device; the profile gives the free memory that
they would otherwise read from the machine. Source: transformers.integrations.accelerate (5.23): unless the
user passes `max_memory`, one GPU is filled to 90 % and host memory to 90 %; several GPUs are balanced.
"""

from typing import Final

from planner.cost.memory_terms import host_process_bytes
from planner.models.build import build
from planner.models.spec import ModelSpec
from planner.runtimes.quiet_logs import silent
from planner.schema.hardware import HardwareProfile

_ONE_GPU_SHARE: Final = 0.9
_HOST_SHARE: Final = 0.9


def auto_device_map(spec: ModelSpec, profile: HardwareProfile, dtype: str) -> dict[str, str | int]:
    """The map that transformers would choose.

    Args:
        spec: the model.
        profile: the machine.
        dtype: dtype of the weights.

    Returns:
        Module → GPU index, `cpu` or `disk`.

    Raises:
        ModelError: transformers cannot build the model.
    """
    import torch
    from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

    from planner.tracing.meta_model import build as build_meta

    config, model_class = build(spec)
    model = build_meta(config, model_class, getattr(torch, dtype))
    free = _free_memory(profile)
    classes = set(model._no_split_modules or ())
    # It would warn that the profile's GPUs are not in this machine.
    with silent("accelerate.utils.modeling"):
        balanced = get_balanced_memory(model, max_memory=dict(free), no_split_module_classes=classes)
        if profile.num_gpus == 1:
            balanced[0] = int(free[0] * _ONE_GPU_SHARE)
        result: dict[str, str | int] = infer_auto_device_map(
            model,
            max_memory=balanced,
            no_split_module_classes=classes,
            no_placement_params=getattr(model, "_no_placement_params", None),
        )
    return result


def _free_memory(profile: HardwareProfile) -> dict[int | str, int]:
    """Free bytes by device, in a new process with a CUDA context."""
    free: dict[int | str, int] = {}
    if profile.gpu is not None:
        each = round(profile.gpu.memory_bytes.value - profile.gpu.context_bytes.value)
        free.update(dict.fromkeys(range(profile.num_gpus), each))
    host = profile.host.memory_bytes.value - host_process_bytes(profile)
    free["cpu"] = round(_HOST_SHARE * host)
    return free
