"""`planner predict`: what a given device map would do on a machine."""

import json
from pathlib import Path
from typing import Any

import click

from planner.contenders import dtypes_for
from planner.device_map import check
from planner.errors import DeviceMapError
from planner.explain import explain
from planner.planning import plan_of
from planner.prediction import candidate_of, refusal
from planner.request import Request
from planner.workload import Workload

from ..choices import machine, model_and_machine, traced_model
from ..options import output_options
from ..render import show_json, show_text
from ..report import headline, show_places, show_prediction


@click.command(name="predict")
@model_and_machine
@click.option(
    "--device-map",
    "device_map",
    required=True,
    help="A JSON file (module → GPU index, cpu or disk), or auto: what device_map='auto' would choose.",
)
@click.option("--batch", "batch_size", type=int, default=1, show_default=True, help="Batch size.")
@click.option("--pinned", is_flag=True, help="Host copies are pinned; stock Accelerate's are not.")
@output_options
def command(
    model: str,
    hardware: str,
    dtype: str | None,
    prompt_tokens: int,
    new_tokens: int,
    trust_remote_code: bool,
    device_map: str,
    batch_size: int,
    pinned: bool,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Predict memory and time of MODEL on HARDWARE under a device map, yours or the automatic one.

    The exit status is 1 when the map does not fit; the prediction is shown all the same.
    """
    profile = machine(hardware, **overrides)
    spec, traced = traced_model(model, trust_remote_code=trust_remote_code)
    chosen = dtypes_for(traced, profile, Request(dtype=dtype))[0]
    workload = Workload(
        batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=new_tokens, dtype=chosen
    )
    given = _automatic(spec, profile, chosen) if device_map == "auto" else _read(Path(device_map))
    places = check(given, traced.graph, num_gpus=profile.num_gpus)
    host_copies = "pinned" if pinned else "pageable"
    candidate = candidate_of(traced, profile, workload, places, host_copies=host_copies)
    plan = plan_of(traced, candidate, objective="latency")
    if as_json:
        show_json(plan)
    else:
        show_text(headline(plan))
        show_places(explain(plan).places)
        show_prediction(plan.prediction)
    if not candidate.fits:
        raise refusal(candidate)


def _automatic(spec: Any, profile: Any, dtype: str) -> dict[str, str | int]:
    from planner.runtimes.accelerate.auto_map import auto_device_map

    return auto_device_map(spec, profile, dtype)


def _read(path: Path) -> dict[str, str | int]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DeviceMapError(f"cannot read the device map {path}: {error.strerror}") from error
    except ValueError as error:
        raise DeviceMapError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(v, str | int) for v in found.values()):
        raise DeviceMapError(f'{path} must be an object: module → GPU index, "cpu" or "disk"')
    return found
