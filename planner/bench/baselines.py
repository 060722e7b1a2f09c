"""Baselines: common ways to run a model without a plan, written as folders that can be benchmarked."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from planner.bench.scripts import __name__ as _SCRIPTS
from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.runtime_model import Emitted, RuntimeModel, Scenario
from planner.device_map.check import check
from planner.errors import InvalidInputError, PlannerError, UnknownNameError
from planner.graph.model import Model
from planner.models.spec import ModelSpec
from planner.runtimes.folder import SCRIPT, write_folder
from planner.runtimes.registry import runtime_models
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.plan import Plan
from planner.schema.request import Request
from planner.schema.workload import Workload
from planner.search.best_placement import PricedPlacement, price_assignment
from planner.search.choose import plan_of
from planner.search.user_device_map import price_device_map

#: Name of a baseline → module of its script in `planner.bench.scripts`.
_SCRIPT_OF: Final = {
    "accelerate-auto": "accelerate_auto",
    "zero-four-lines": "zero_four_lines",
    "cpu": "resident",
    "resident": "resident",
}
BASELINES: Final = tuple(_SCRIPT_OF)


class Baseline(NamedTuple):
    """A written baseline.

    Attributes:
        plan: a plan that describes the baseline's placement and configuration.
        is_predictable: whether the cost model can predict it.
        runtime_model: the runtime model that the plan was priced with.
    """

    plan: Plan
    is_predictable: bool
    runtime_model: RuntimeModel


def write_baseline(
    name: str, spec: ModelSpec, model: Model, profile: HardwareProfile, workload: Workload, folder: Path
) -> Baseline:
    """Write a baseline's folder.

    Args:
        name: one of `BASELINES`.
        spec: the model's configuration.
        model: the same model with its graph.
        profile: the machine; its GPU memory is the memory that the run may use.
        workload: lengths, batch size and dtype.
        folder: folder to create.

    Raises:
        UnknownNameError: there is no baseline of this name.
        InvalidInputError: the baseline needs a GPU and the machine has none.
    """
    if name not in BASELINES:
        raise UnknownNameError(f"unknown baseline {name!r}; choose from {', '.join(BASELINES)}")
    if profile.num_gpus == 0 and name in ("zero-four-lines", "resident"):
        raise InvalidInputError(f"the baseline {name} needs a GPU, and {profile.name} has none")
    files: dict[str, bytes] = {SCRIPT: _script(name)}
    config = four_lines(workload)
    if name == "zero-four-lines":
        files["ds_config.json"] = json.dumps(config, indent=1).encode()
    price_baseline: dict[str, Callable[[], PricedPlacement]] = {
        "accelerate-auto": lambda: _automatic(spec, model, profile, workload),
        "zero-four-lines": lambda: _four_lines(model, profile, workload, config),
        "cpu": lambda: _whole(model, profile, workload, "cpu"),
        "resident": lambda: _whole(model, profile, workload, "accelerate"),
    }
    try:
        priced, is_predictable = price_baseline[name](), True
    except (PlannerError, ImportError, AttributeError):
        # Another release of transformers may lack the functions that compute its automatic device map. The
        # baseline can still be run.
        priced, is_predictable = (
            _whole(model, profile, workload, "accelerate" if profile.num_gpus else "cpu"),
            False,
        )
    execution = priced.problem.scenario.execution
    plan = plan_of(model, priced, Request.of_workload(workload, execution))
    write_folder(plan, Emitted(files=files, needs="torch and transformers"), folder)
    return Baseline(plan, is_predictable, priced.problem.scenario.runtime_model)


def four_lines(workload: Workload) -> dict[str, Any]:
    """The configuration in ZeRO-Inference's announcement, with the fields that DeepSpeed requires."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": workload.batch_size,
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_memory": True}},
    }
    if workload.dtype in ("float16", "bfloat16"):
        config["fp16" if workload.dtype == "float16" else "bf16"] = {"enabled": True}
    return config


def _script(name: str) -> bytes:
    return resources.files(_SCRIPTS).joinpath(f"{_SCRIPT_OF[name]}.py").read_bytes()


def _automatic(
    spec: ModelSpec, model: Model, profile: HardwareProfile, workload: Workload
) -> PricedPlacement:
    from planner.runtimes.accelerate.auto_map import auto_device_map

    given = auto_device_map(spec, profile, workload.dtype)
    places = check(given, model.graph, num_gpus=profile.num_gpus)
    return price_device_map(model, profile, workload, places, host_copies="pageable")


def _four_lines(
    model: Model, profile: HardwareProfile, workload: Workload, config: dict[str, Any]
) -> PricedPlacement:
    from planner.search.user_ds_config import price_ds_config

    return price_ds_config(model, profile, workload, config)


def _whole(model: Model, profile: HardwareProfile, workload: Workload, runtime: str) -> PricedPlacement:
    """All weights on the first GPU, or on the CPU."""
    (runtime_model,) = runtime_models([runtime])
    main = "cpu" if runtime == "cpu" else "gpu:0"
    execution = next(
        (config for config in runtime_model.configurations(profile) if config.main == main), None
    ) or ExecutionConfig(runtime=runtime, label=runtime, main=main)
    execution = msgspec.structs.replace(execution, keeps_host_pages=False)
    problem = price(Scenario.whole(model.graph, profile, workload, execution, runtime_model).of_one_rank())
    return price_assignment(problem, Assignment.uniform(problem, main))
