"""`planner predict`: predicts memory and time of a given device map or DeepSpeed configuration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from planner.device_map.check import check
from planner.errors import DeviceMapError, InvalidInputError, PlannerError
from planner.graph.model import Model
from planner.report.explain import explain
from planner.schema.hardware import HardwareProfile
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.best_placement import PricedPlacement
from planner.search.candidates import dtype_for
from planner.search.choose import plan_of
from planner.search.user_device_map import price_device_map, refusal

from ..choices import machine, model_and_machine, traced_model
from ..completion import DTYPES, device_maps, names_of
from ..exit_codes import ExitCode
from ..options import output_options
from ..program import after_json
from ..render import show_json, show_text
from ..report import headline, show_places, show_prediction


@click.command(name="predict")
@model_and_machine
@click.option(
    "--device-map",
    "device_map",
    shell_complete=device_maps,
    help="JSON file that maps modules to a GPU index, cpu or disk; or auto, the map that Accelerate computes "
    'for device_map="auto".',
)
@click.option(
    "--ds-config",
    "ds_config",
    type=click.Path(path_type=Path),
    help="DeepSpeed configuration of ZeRO-Inference, run with one rank per GPU; instead of --device-map.",
)
@click.option(
    "--dtype",
    shell_complete=names_of(*DTYPES),
    help="float16, bfloat16 or float32.  [default: the model's]",
)
@click.option("--batch", "batch_size", type=int, default=1, show_default=True, help="Batch size.")
@click.option(
    "--pinned",
    is_flag=True,
    help="Assume that offloaded weights are in pinned host memory; Accelerate itself does not pin them.",
)
@output_options
def command(
    model: str,
    hardware: str,
    dtype: str | None,
    prompt_tokens: int,
    new_tokens: int,
    trust_remote_code: bool,
    device_map: str | None,
    ds_config: Path | None,
    batch_size: int,
    pinned: bool,
    as_json: bool,
    **overrides: Any,
) -> int:
    """Predict memory and time of a given device map or DeepSpeed configuration.

    The exit status is 1 when it does not fit, and 3 when DeepSpeed would reject or ignore part of the
    configuration. The prediction is printed in both cases where there is one.
    """
    if (device_map is None) == (ds_config is None):
        raise click.UsageError("give either --device-map or --ds-config")
    profile = machine(hardware, **overrides)
    spec, traced = traced_model(model, trust_remote_code=trust_remote_code)
    traced.check_lengths(prompt_tokens, new_tokens)

    def workload_in(dtype: str) -> Workload:
        return Workload(
            batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=new_tokens, dtype=dtype
        )

    ignored: list[str] = []
    if ds_config is not None:
        priced, ignored = _configured(ds_config, traced, profile, workload_in, dtype)
    else:
        chosen = dtype_for(traced, profile, dtype)
        given = _automatic(spec, profile, chosen) if device_map == "auto" else _read(Path(device_map or ""))
        places = check(given, traced.graph, num_gpus=profile.num_gpus)
        copies: Literal["pinned", "pageable"] = "pinned" if pinned else "pageable"
        priced = price_device_map(traced, profile, workload_in(chosen), places, host_copies=copies)
    plan = plan_of(
        traced,
        priced,
        Request.of_workload(
            priced.problem.scenario.workload.with_batch(batch_size), priced.problem.scenario.execution
        ),
        notes=tuple(ignored),
    )
    error: PlannerError | None = None
    if ignored:
        error = InvalidInputError(f"{ds_config}: {'; '.join(ignored)}")
    elif not priced.fits:
        error = refusal(priced)
    if as_json:
        show_json(plan)
        return ExitCode.OK if error is None else after_json(error)
    show_text(headline(plan))
    show_places(explain(plan).places)
    show_prediction(plan.prediction)
    if error is not None:
        raise error
    return ExitCode.OK


def _configured(
    path: Path,
    model: Model,
    profile: HardwareProfile,
    workload_in: Callable[[str], Workload],
    asked: str | None,
) -> tuple[PricedPlacement, list[str]]:
    """A priced DeepSpeed configuration, and sentences about the parts that DeepSpeed would ignore."""
    from planner.runtimes.zero_inference import validate
    from planner.search import user_ds_config as given

    config = _parsed(path, InvalidInputError, "a DeepSpeed configuration")
    if not isinstance(config, dict):
        raise InvalidInputError(f"{path} must be a JSON object, like every DeepSpeed configuration")
    found = validate.findings(config, num_ranks=profile.num_gpus)
    if all(one.kind == "ignored" for one in found):
        found += given.quantization_findings(model.graph, config)
    if any(one.kind != "ignored" for one in found):
        raise InvalidInputError(f"{path}: {'; '.join(one.sentence for one in found)}")
    dtype = given.dtype_of(config)
    if asked not in (None, dtype):
        raise InvalidInputError(f"{path} runs the model in {dtype}, not in {asked}: set fp16 or bf16 in it")
    priced = given.price_ds_config(model, profile, workload_in(dtype), config)
    return priced, [one.sentence for one in found]


def _automatic(spec: Any, profile: Any, dtype: str) -> dict[str, str | int]:
    from planner.runtimes.accelerate.auto_map import auto_device_map

    return auto_device_map(spec, profile, dtype)


def _read(path: Path) -> dict[str, str | int]:
    found = _parsed(path, DeviceMapError, "the device map")
    if not isinstance(found, dict) or not all(isinstance(v, str | int) for v in found.values()):
        raise DeviceMapError(f'{path} must be a JSON object: module → GPU index, "cpu" or "disk"')
    return found


def _parsed(path: Path, kind: type[PlannerError], what: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise kind(f"cannot read {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise kind(f"{path} is not JSON: {error}") from error
