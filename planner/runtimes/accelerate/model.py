"""The runtime model of Accelerate: blocking copies of one tensor at a time, without overlap.

A hook calls `tensor.to(device)` for each tensor of the module, waits, runs the module and puts the
tensors back on meta. From pageable memory the driver stages the copy; from pinned memory it does not.
From disk, each forward reads the tensor out of its safetensors file into pageable memory first. Accelerate
also empties the allocator's cache for each tensor; the emitted script prevents that, so it is not priced.
Source: accelerate.hooks.AlignDevicesHook, accelerate.utils.offload.OffloadedWeightsLoader (1.15).
"""

from typing import Literal

from planner.cost.runtime_model import Movement, RuntimeModel, Scenario
from planner.cost.time_terms import copy_s
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.quantity import Quantity


class AccelerateRuntime(RuntimeModel):
    """See `planner.cost.runtime_model.RuntimeModel`."""

    name = "accelerate"
    pipeline = True
    # The first GPU in a device map is its main device.
    needs_resident = True
    hooks = "split"

    def configurations(self, profile: HardwareProfile) -> tuple[ExecutionConfig, ...]:
        """Pageable and pinned host copies, each with the cache on the device or in host memory."""
        if profile.num_gpus == 0:
            places = places_beside("cpu", profile)
            if not places:
                return ()
            label = "accelerate, CPU with weights on disk"
            return (ExecutionConfig(runtime=self.name, label=label, main="cpu", streams_from=places),)
        caches: tuple[Literal["device", "offloaded"], ...] = (
            ("device", "offloaded") if profile.num_gpus == 1 else ("device",)
        )
        return tuple(
            ExecutionConfig(
                runtime=self.name,
                label=_label(host_copies, kv_cache),
                main="gpu:0",
                host_copies=host_copies,
                kv_cache=kv_cache,
                cpu_execution=kv_cache == "device",
                streams_from=places_beside("gpu:0", profile),
            )
            for kv_cache in caches
            for host_copies in ("pageable", "pinned")
        )

    def movement(
        self, scenario: Scenario, *, num_bytes: int, num_tensors: int, stored_on: str, runs_on: str
    ) -> Movement:
        """See `planner.cost.runtime_model.RuntimeModel.movement`.

        Args:
            scenario: the scenario of one rank.
            num_bytes: bytes of all the tensors together.
            num_tensors: number of tensors; each is read and copied by itself.
            stored_on: `cpu`, or `disk`, from which tensors pass through pageable memory.
            runs_on: `gpu:N`, or `cpu`, to which tensors are read only.
        """
        profile = scenario.profile
        quantities: list[Quantity] = [profile.host.tensor_move_overhead_s]
        seconds = 0.0
        if stored_on == "disk":
            disk = profile.disk
            if disk is None:
                raise ValueError(f"profile {profile.name!r} has no disk to stream from")
            seconds += num_tensors * disk.latency_s.value + num_bytes / disk.read_bytes_per_s.value
            quantities += [disk.latency_s, disk.read_bytes_per_s]
        if runs_on != "cpu":
            link = profile.host_to_device
            if link is None:
                raise ValueError(f"profile {profile.name!r} has no link to {runs_on}")
            pinned = stored_on == "cpu" and scenario.execution.host_copies == "pinned"
            seconds += copy_s(num_bytes, link, pinned=pinned, num_copies=num_tensors)
            quantities += [link.latency_s, link.pinned_bytes_per_s if pinned else link.pageable_bytes_per_s]
        return Movement(
            copy_s=seconds,
            host_s=num_tensors * profile.host.tensor_move_overhead_s.value,
            quantities=tuple(quantities),
        )


def places_beside(main: str, profile: HardwareProfile) -> tuple[str, ...]:
    """Places besides the main device where weights may be stored: host memory, and a local disk."""
    near = () if main == "cpu" else ("cpu",)
    return near if profile.disk is None else (*near, "disk")


def _label(host_copies: str, kv_cache: str) -> str:
    words = f"accelerate, {host_copies} host copies"
    return words if kv_cache == "device" else f"{words}, KV cache in host memory"


RUNTIME_MODEL = AccelerateRuntime()
