"""Fake devices: tensors without memory that have a device, and CUDA's rules for combining devices.

`cpu:1`, `cpu:2`, … stand for the devices, because a fake `cuda` needs a CUDA build of torch; `cpu` without an
index is the host.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

HOST: Final = torch.device("cpu")
MAIN: Final = torch.device("cpu", 0)
# torch stores a device index in a signed byte, and index 0 is the main device.
NUM_DEVICES: Final = 120


def devices_of(tensors: list[Any]) -> list[torch.device]:
    """The distinct devices of `tensors`, except 0-dimensional host tensors, which combine with any."""
    devices: dict[torch.device, None] = {}
    for tensor in tensors:
        if isinstance(tensor, FakeTensor) and not (tensor.dim() == 0 and tensor.device == HOST):
            devices[tensor.device] = None
    return list(devices)


def _common_device(func: Any, flat_args: Any) -> tuple[torch.device, bool]:
    """CUDA's rule: all tensors are on one device, except 0-dimensional ones of the host."""
    devices = devices_of(list(flat_args))
    if len(devices) > 1:
        raise fake_tensor.FakeTensorDeviceMismatchError(func, devices[0], devices[1])
    if devices:
        return devices[0], False
    if any(isinstance(tensor, FakeTensor) for tensor in flat_args):
        return HOST, False
    if fake_tensor.should_allow_numbers_as_tensors(func):
        return HOST, True
    raise AssertionError(f"no common device for {func}")


@contextmanager
def fake_devices() -> Iterator[FakeTensorMode]:
    """A FakeTensorMode in which operations follow CUDA's rules for combining devices."""
    original = FakeTensor.__dict__["_find_common_device"]
    FakeTensor._find_common_device = staticmethod(_common_device)  # type: ignore[method-assign]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        FakeTensor._find_common_device = original  # type: ignore[method-assign]
