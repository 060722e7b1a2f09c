"""`planner predict`: predicts memory and time of a given device map or DeepSpeed configuration."""

from pathlib import Path
from typing import Any

import click

import planner
from planner.errors import InvalidInputError, PlannerError

from ..choices import machine, model_and_machine
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
    plan = planner.predict(
        planner.load_model(model, trust_remote_code=trust_remote_code),
        machine(hardware, **overrides),
        device_map=None if device_map is None else "auto" if device_map == "auto" else Path(device_map),
        ds_config=ds_config,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        dtype=dtype,
        host_copies="pinned" if pinned else "pageable",
    )
    error: PlannerError | None = None
    if plan.notes:
        error = InvalidInputError(f"{ds_config}: {'; '.join(plan.notes)}")
    elif not plan.fits:
        from planner.user_files import refusal

        error = refusal(plan)
    if as_json:
        show_json(plan)
        return ExitCode.OK if error is None else after_json(error)
    show_text(headline(plan))
    show_places(planner.explain(plan).places)
    show_prediction(plan.prediction)
    if error is not None:
        raise error
    return ExitCode.OK
