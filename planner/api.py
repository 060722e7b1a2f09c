"""The Python interface of the planner, which the command line goes through as well.

Functions take values and return values; `emit`, `save_report` and `verify` write files or run processes.
What only one function needs is imported there, so that planning starts quickly.
"""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from planner.emission import emit as emit_plan
from planner.errors import InvalidInputError
from planner.graph.model import Model
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.report.explain import Explanation
from planner.report.explain import explain as explain_plan
from planner.schema.hardware import HardwareProfile
from planner.schema.notebook import Renderers, show_by
from planner.schema.plan import Plan, read
from planner.schema.request import Request
from planner.search.choose import make_plan, plan_of
from planner.serving.registry import runtimes as runtimes_of_server
from planner.tracing.load import load_model, load_recorded

if TYPE_CHECKING:
    from planner.search.compare_machines import Machines
    from planner.search.what_if import Change
    from planner.user_files import DeviceMap
    from planner.verification.run import VerifyReport

_PathLike = str | PathLike[str]


def _renderers() -> Renderers:
    # Imported when a notebook shows the first value: templates and charts take time to import.
    from planner.report.notebook import renderers

    return renderers()


show_by(_renderers)


def load_hardware(
    name: _PathLike,
    *,
    num_gpus: int | None = None,
    gpu_memory_bytes: int | None = None,
    cpu_memory_bytes: int | None = None,
    nvme: tuple[int, float] | None = None,
    link_bytes_per_s: float | None = None,
) -> HardwareProfile:
    """A machine's profile, with some of its numbers replaced.

    Args:
        name: a shipped profile, a count of GPUs as in `8xa100-80g`, or the path of a `.toml` file.
        num_gpus: use this many GPUs of the profile's kind.
        gpu_memory_bytes: of each GPU, the CUDA context included.
        cpu_memory_bytes: host memory.
        nvme: capacity in bytes and read rate in bytes per second of a local disk.
        link_bytes_per_s: from page-locked host memory to each GPU.

    Raises:
        UnknownNameError: no profile is called so.
        ProfileError: a file that is no profile.
        InvalidInputError: a number that the profile cannot have.
    """
    return apply(
        load(str(name)),
        num_gpus=num_gpus,
        gpu_memory_bytes=gpu_memory_bytes,
        cpu_memory_bytes=cpu_memory_bytes,
        nvme=nvme,
        link_bytes_per_s=link_bytes_per_s,
    )


def plan(
    model: Model | str,
    hardware: HardwareProfile | str,
    request: Request | None = None,
    *,
    server: str | None = None,
) -> Plan:
    """The best placement, batch size and runtime for a model on a machine.

    Args:
        model: from `load_model`, or a name for it.
        hardware: from `load_hardware`, or a name for it.
        request: lengths, limits and objective; the defaults for None.
        server: consider only runtimes that this server runs (`djl` or `mii`); None: any.

    Raises:
        InfeasibleError: nothing fits; it carries the smallest number of bytes short, and on which device.
        InvalidInputError: the request cannot apply to this model or machine.
    """
    chosen, machine, request = _model(model), _machine(hardware), request or Request()
    if request.runtimes is None:
        request = msgspec.structs.replace(request, runtimes=runtimes_of_server(server, chosen.graph))
    return make_plan(chosen, machine, request)


def predict(
    model: Model | str,
    hardware: HardwareProfile | str,
    *,
    device_map: "DeviceMap | Literal['auto'] | Path | None" = None,
    ds_config: Mapping[str, Any] | Path | None = None,
    batch_size: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    dtype: str | None = None,
    host_copies: Literal["pinned", "pageable"] = "pageable",
) -> Plan:
    """What a device map or a DeepSpeed configuration of the user's own would do, whether or not it fits.

    Args:
        model: from `load_model`, or a name for it.
        hardware: from `load_hardware`, or a name for it.
        device_map: module → GPU index, `cpu` or `disk`; `auto` for what `device_map="auto"` would choose; or
            a JSON file.
        ds_config: a configuration for ZeRO-Inference with a rank on every GPU of the machine, or its file.
        batch_size: sequences of all ranks together.
        prompt_tokens: length of each prompt.
        new_tokens: generated for each.
        dtype: of everything; None: the model's own where the machine runs it, or the configuration's.
        host_copies: whether weights in host memory are page-locked; stock Accelerate's are not.

    Returns:
        As a plan; `fits` says whether it can run, and `notes` what DeepSpeed would ignore.

    Raises:
        InvalidInputError: neither or both are given, the model has too few positions, or DeepSpeed would
            reject the configuration.
        DeviceMapError: the map does not cover the model or names what the machine lacks.
    """
    from planner.user_files import price_given_config, price_given_map

    chosen, machine = _model(model), _machine(hardware)
    chosen.check_lengths(prompt_tokens, new_tokens)
    lengths = {"batch_size": batch_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    notes: tuple[str, ...] = ()
    if ds_config is not None and device_map is None:
        priced, notes = price_given_config(chosen, machine, ds_config, lengths, dtype=dtype)
    elif device_map is not None and ds_config is None:
        priced = price_given_map(chosen, machine, device_map, lengths, dtype=dtype, host_copies=host_copies)
    else:
        raise InvalidInputError("give either `device_map` or `ds_config`")
    scenario = priced.problem.scenario
    asked = Request.of_workload(scenario.workload.with_batch(batch_size), scenario.execution)
    return plan_of(chosen, priced, asked, notes=notes)


def explain(plan: Plan) -> Explanation:
    """What is where in a plan and why, what bounds it, and what lost by how much."""
    return explain_plan(plan)


def what_if(plan: Plan, model: Model | str | None = None) -> "tuple[Change, ...]":
    """The plan's own request on a machine with a little more of something, one change at a time.

    Args:
        plan: of any objective and limits.
        model: the plan's, if it is not where it was when it was planned.

    Raises:
        ModelError: the model is not found.
        InvalidInputError: it is another model than the plan's.
    """
    from planner.search.what_if import what_if as what_if_changed

    return what_if_changed(_model_of(plan, model), plan)


def compare(
    model: Model | str, hardware: Iterable[HardwareProfile | str], request: Request | None = None
) -> "Machines":
    """The best plan for a model on each of several machines, the best machine first.

    Args:
        model: from `load_model`, or a name for it.
        hardware: the machines, or names for them.
        request: lengths, limits and objective; the defaults for None.

    Raises:
        InvalidInputError: no machine is given, or the request applies to none of them.
    """
    from planner.search.compare_machines import compare_machines

    machines = [_machine(one) for one in hardware]
    return compare_machines(_model(model), machines, request or Request())


def emit(
    plan: Plan, folder: _PathLike, *, model: Model | str | None = None, server: str | None = None
) -> tuple[Path, ...]:
    """Write the folder that runs a plan; it appears whole or not at all.

    Args:
        plan: what to run.
        folder: new, or one that holds a plan.
        model: the plan's, if it is not where it was when it was planned.
        server: also write the configuration of this server, `djl` or `mii`.

    Returns:
        The files.

    Raises:
        InvalidInputError: the folder holds something else, or the server cannot run this plan.
    """
    return emit_plan(plan, _model_of(plan, model).graph, Path(folder), server=server)


def read_plan(folder: _PathLike) -> Plan:
    """The plan of a folder that `emit` wrote, or of the path of its `plan.json`.

    Raises:
        PlanFileError: there is none, it is damaged, or it is of another schema version.
    """
    return read(Path(folder))


def save_report(
    plan: Plan,
    path: _PathLike,
    *,
    model: Model | str | None = None,
    row_files: Iterable[Path] = (),
) -> None:
    """Draw a plan: memory, one step on a time line, and other batch sizes.

    Args:
        plan: what to draw.
        path: `.html` for a page, `.png` or `.svg` for its charts.
        model: the plan's, if it is not where it was when it was planned.
        row_files: rows that `planner bench` wrote, drawn as predicted against measured.

    Raises:
        InvalidInputError: another suffix, no folder to put it in, or matplotlib is missing.
        BadFileError: rows cannot be read.
    """
    from planner.bench.repricing import repriced
    from planner.report.page import write_report
    from planner.search.best_placement import price_assignment

    priced = price_assignment(*repriced(plan, _model_of(plan, model).graph, plan.workload))
    write_report(plan, priced, Path(path), tuple(row_files))


def verify(
    folder: _PathLike,
    checkpoint: _PathLike,
    *,
    on: Literal["cpu"] | None = None,
    new_tokens: int | None = None,
    batch_size: int | None = None,
    shards: _PathLike | None = None,
    timeout_s: float | None = None,
) -> "VerifyReport":
    """Run an emitted plan in processes of its own, and compare it with the unmodified model.

    Args:
        folder: as `emit` wrote it.
        checkpoint: a folder with the model's configuration and weights.
        on: `cpu`: without a GPU, every tier one step down; None: as planned.
        new_tokens: of each sequence; the plan's for None.
        batch_size: the plan's for None.
        shards: what `reshard` wrote for the plan's ranks, which the script then loads.
        timeout_s: of each process; no limit for None.

    Returns:
        What was compared; `passed` says whether tokens and logits are equal.

    Raises:
        RuntimeFailure: a process failed.
        InvalidInputError: the folder or the checkpoint cannot be run.
    """
    from planner.verification.run import verify as verify_folder

    return verify_folder(
        Path(folder),
        Path(checkpoint),
        on=on,
        new_tokens=new_tokens,
        batch_size=batch_size,
        shards=None if shards is None else Path(shards),
        timeout_s=timeout_s,
    )


def _model(model: Model | str) -> Model:
    return model if isinstance(model, Model) else load_model(model)


def _machine(hardware: HardwareProfile | str) -> HardwareProfile:
    return hardware if isinstance(hardware, HardwareProfile) else load(hardware)


def _model_of(plan: Plan, model: Model | str | None) -> Model:
    return model if isinstance(model, Model) else load_recorded(plan.model, name=model)
