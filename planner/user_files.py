"""What users bring of their own: a device map or a DeepSpeed configuration, read, checked and priced."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from planner.device_map.check import check
from planner.errors import DeviceMapError, InfeasibleError, InvalidInputError, PlannerError
from planner.graph.model import Model
from planner.schema.breakdown import shortage
from planner.schema.hardware import HardwareProfile
from planner.schema.plan import Plan
from planner.schema.workload import Workload
from planner.search.best_placement import PricedPlacement
from planner.search.candidates import dtype_for
from planner.search.user_device_map import price_device_map
from planner.sizes import format_bytes

#: Module → GPU index, `cpu` or `disk`.
DeviceMap = Mapping[str, str | int]


def price_given_map(
    model: Model,
    machine: HardwareProfile,
    given: DeviceMap | str | Path,
    lengths: Mapping[str, int],
    *,
    dtype: str | None,
    host_copies: Literal["pinned", "pageable"],
) -> PricedPlacement:
    """A device map as a placement, whether or not it fits.

    Args:
        model: what it places.
        machine: where.
        given: the map, `auto` for what Accelerate would choose, or a JSON file.
        lengths: `batch_size`, `prompt_tokens` and `new_tokens`.
        dtype: of everything; None: the model's own where the machine runs it.
        host_copies: whether weights in host memory are page-locked.

    Raises:
        DeviceMapError: it is no map, does not cover the model, or names what the machine lacks.
    """
    workload = Workload(**lengths, dtype=dtype_for(model, machine, dtype))
    places = check(_device_map(model, machine, given, workload.dtype), model.graph, num_gpus=machine.num_gpus)
    return price_device_map(model, machine, workload, places, host_copies=host_copies)


def refusal(plan: Plan) -> InfeasibleError:
    """The error that says by how much what a user brought does not fit."""
    lack = shortage(plan.prediction.memory)
    if lack is None:
        raise ValueError("the plan fits, so there is nothing to refuse")
    batch = plan.workload.batch_size
    return InfeasibleError(
        f"this map does not fit at batch {batch}: {format_bytes(lack.num_bytes)} short on {lack.device}",
        device=lack.device,
        deficit_bytes=lack.num_bytes,
    )


def _device_map(
    model: Model, machine: HardwareProfile, given: DeviceMap | str | Path, dtype: str
) -> DeviceMap:
    if given == "auto":
        # Imported here: transformers and Accelerate take seconds to import.
        from planner.runtimes.accelerate.auto_map import auto_device_map

        return auto_device_map(model.known_spec, machine, dtype)
    if not isinstance(given, str | Path):
        return given
    loaded = _json(Path(given), DeviceMapError, "the device map")
    if not isinstance(loaded, dict) or not all(isinstance(v, str | int) for v in loaded.values()):
        raise DeviceMapError(f'{given} must be a JSON object: module → GPU index, "cpu" or "disk"')
    return loaded


def price_given_config(
    model: Model,
    machine: HardwareProfile,
    given: Mapping[str, Any] | Path,
    lengths: Mapping[str, int],
    *,
    dtype: str | None,
) -> tuple[PricedPlacement, tuple[str, ...]]:
    """A DeepSpeed configuration for ZeRO-Inference as a placement, whether or not it fits.

    Args:
        model: what to run.
        machine: with a rank on every GPU.
        given: the configuration, or its file.
        lengths: `batch_size` of all ranks together, `prompt_tokens` and `new_tokens`.
        dtype: what the user expects; None: what the configuration states.

    Returns:
        The placement, and a sentence for each part of the configuration that DeepSpeed would ignore.

    Raises:
        InvalidInputError: DeepSpeed would reject it or fail with it, or it states another dtype.
    """
    # Imported here: they ask DeepSpeed, which takes seconds to import.
    from planner.runtimes.zero_inference import validate
    from planner.search import user_ds_config

    config: Any = given
    name = "the configuration"
    if isinstance(given, Path):
        config, name = _json(given, InvalidInputError, "a DeepSpeed configuration"), str(given)
    if not isinstance(config, dict):
        raise InvalidInputError(f"{name} must be a JSON object, like every DeepSpeed configuration")
    findings = validate.findings(config, num_ranks=machine.num_gpus)
    if all(finding.kind == "ignored" for finding in findings):
        findings += user_ds_config.quantization_findings(model.graph, config)
    sentences = tuple(finding.sentence for finding in findings)
    if any(finding.kind != "ignored" for finding in findings):
        raise InvalidInputError(f"{name}: {'; '.join(sentences)}")
    stated = user_ds_config.dtype_of(config)
    if dtype not in (None, stated):
        raise InvalidInputError(f"{name} runs the model in {stated}, not in {dtype}: set fp16 or bf16 in it")
    workload = Workload(**lengths, dtype=stated)
    return user_ds_config.price_ds_config(model, machine, workload, config), sentences


def _json(path: Path, kind: type[PlannerError], what: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise kind(f"cannot read {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise kind(f"{path} is not JSON: {error}") from error
