"""A device map that a user gives, priced with the cost model of a plan."""

from collections.abc import Mapping
from typing import Literal

from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.problem import Problem, UnitPrice
from planner.cost.runtime_model import Scenario
from planner.errors import DeviceMapError
from planner.graph.model import Model
from planner.runtimes.accelerate.model import places_beside
from planner.runtimes.registry import runtime_models
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import Workload
from planner.search.best_placement import PricedPlacement, price_assignment


def price_device_map(
    model: Model,
    profile: HardwareProfile,
    workload: Workload,
    places: Mapping[str, str | int],
    *,
    host_copies: Literal["pinned", "pageable"],
) -> PricedPlacement:
    """A resolved map, priced whether or not it fits.

    Args:
        model: the model that the map places.
        profile: the machine.
        workload: lengths, batch and dtype.
        places: fqn of every tensor-owning module → GPU index, `cpu` or `disk`, checked
            (see `planner.device_map.check`).
        host_copies: kind of host memory for weights that are stored on the CPU and run on a GPU; Accelerate
            by itself uses `pageable`.

    Raises:
        DeviceMapError: the map names a GPU or a disk that the profile lacks.
    """
    _check_devices(places, profile)
    main = "gpu:0" if any(isinstance(place, int) for place in places.values()) else "cpu"
    execution = ExecutionConfig(
        runtime="accelerate",
        label=f"the given map, {host_copies} host copies",
        main=main,
        host_copies=host_copies,
        cpu_execution=False,
        streams_from=places_beside(main, profile),
    )
    (runtime_model,) = runtime_models(["accelerate"])
    problem = price(Scenario.whole(model.graph, profile, workload, execution, runtime_model).of_one_rank())
    return price_assignment(problem, _assignment(problem, places))


def _assignment(problem: Problem, places: Mapping[str, str | int]) -> Assignment:
    runs_on = tuple(_runs_on(problem, unit, places) for unit in problem.units)
    stored_on = tuple(
        tuple(_device(places[leaf.leaf.modules[0].name]) for leaf in unit.leaves) for unit in problem.units
    )
    return Assignment(runs_on=runs_on, stored_on=stored_on)


def _runs_on(problem: Problem, unit: UnitPrice, places: Mapping[str, str | int]) -> str:
    """The GPU that stores any part of a unit; the main device when all of it is streamed."""
    gpus = {
        places[n.name]
        for leaf in unit.leaves
        for n in leaf.leaf.modules
        if places[n.name] not in ("cpu", "disk")
    }
    return f"gpu:{gpus.pop()}" if gpus else problem.scenario.execution.main


def _device(place: str | int) -> str:
    return f"gpu:{place}" if isinstance(place, int) else place


def _check_devices(places: Mapping[str, str | int], profile: HardwareProfile) -> None:
    gpus = {place for place in places.values() if isinstance(place, int)}
    beyond = sorted(gpu for gpu in gpus if gpu >= profile.num_gpus)
    if beyond:
        raise DeviceMapError(
            f"the map uses GPU {beyond[0]}, but {profile.name!r} has {profile.num_gpus} (numbered from 0)"
        )
    if "disk" in places.values() and profile.disk is None:
        raise DeviceMapError(f"the map puts modules on disk, but {profile.name!r} has no local disk")
