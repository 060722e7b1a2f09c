"""The configurations of published runs, as placements that the cost model prices."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import msgspec

from planner.accuracy.fragmentation import fragmented
from planner.accuracy.old_accelerate import (
    first_fit,
    low_first,
    offloading_s,
    returned_cache_s,
    with_returned_cache,
)
from planner.accuracy.setups import Setup, machine_file
from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.predict import predict
from planner.cost.problem import PEERS, Problem
from planner.cost.runtime_model import RuntimeModel, Scenario
from planner.graph.schema import ModuleGraph
from planner.hardware.load import load
from planner.runtimes.accelerate.model import RUNTIME_MODEL as ACCELERATE
from planner.runtimes.accelerate.model import places_beside
from planner.runtimes.deepspeed_tp.model import RUNTIME_MODEL as DEEPSPEED_TP
from planner.runtimes.kernel_injection.model import RUNTIME_MODEL as KERNEL_INJECTION
from planner.runtimes.zero_inference.model import RUNTIME_MODEL as ZERO_INFERENCE
from planner.schema.breakdown import PHASES, MemoryBreakdown, shortage
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import DTYPE_BYTES, Workload
from planner.tensor_parallel.all_reduce import communicator_bytes
from planner.tracing.load import load_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Prediction for one run.

    Attributes:
        total_s: time of the whole `generate()` call.
        new_tokens: generated tokens of each sequence.
        num_sequences: sequences of all streams together.
        num_ranks: number of GPUs that generate them.
        load_s: time to load the model.
        memory: device → phase → memory, including the fragmentation of the allocator of that time.
    """

    total_s: float
    new_tokens: int
    num_sequences: int
    num_ranks: int
    load_s: float
    memory: dict[str, dict[str, MemoryBreakdown]]

    @property
    def fits(self) -> bool:
        """Whether the run is predicted to fit into the memory of every device."""
        return shortage(self.memory) is None


def outcome(setup: Setup, batch_size: int) -> Outcome:
    """Price one run of a setup.

    Args:
        setup: a setup with a configuration.
        batch_size: sequences of each stream.
    """
    return CONFIGURATIONS[setup.configuration](setup, batch_size)


def _accelerate(setup: Setup, batch_size: int, place: Callable[[Problem], Assignment]) -> Outcome:
    profile = _machine(setup.machine)
    execution = ExecutionConfig(
        runtime=ACCELERATE.name,
        label="accelerate of 2022",
        main="gpu:0",
        streams_from=places_beside("gpu:0", profile),
    )
    problem = _problem(setup, batch_size, profile, execution, ACCELERATE)
    assignment = place(problem)
    prediction = predict(problem, assignment)
    returned = sum(problem.weight(phase) * returned_cache_s(problem, assignment, phase) for phase in PHASES)
    memory = with_returned_cache(problem, assignment, prediction.memory)
    load_s = prediction.load_s + offloading_s(problem, assignment)
    return _outcome(problem, prediction.total_s + returned, load_s, memory)


def _on_ranks(
    setup: Setup,
    batch_size: int,
    runtime_model: RuntimeModel,
    stored_on: str = "gpu:0",
    *,
    whole: bool = False,
    staged_bytes: int = 0,
    context_bytes: int = 0,
) -> Outcome:
    """Price a run with one rank for each GPU of the machine, and the same placement on every rank.

    Args:
        setup: the run.
        batch_size: sequences of each stream.
        runtime_model: the runtime's cost model.
        stored_on: where all weights are stored.
        whole: whether every rank reads the whole checkpoint.
        staged_bytes: transient bytes on each GPU beyond those of the runtime model.
        context_bytes: permanent bytes on each GPU beyond those of the runtime model.
    """
    profile = _machine(setup.machine)
    (execution,) = [
        config
        for config in runtime_model.configurations(profile)
        if config.num_ranks == profile.num_gpus
        and config.weight_bits is None
        and config.kv_cache == "device"
        and (PEERS in config.streams_from) == (stored_on == PEERS)
    ]
    problem = _problem(setup, batch_size, profile, execution, runtime_model)
    assignment = Assignment.uniform(problem, "gpu:0", stored_on)
    prediction = predict(problem, assignment)
    load_s = _whole_load_s(setup, problem) if whole else prediction.load_s
    memory = {
        device: {
            phase: msgspec.structs.replace(
                part, staging=part.staging + staged_bytes, context=part.context + context_bytes
            )
            for phase, part in phases.items()
        }
        if device.startswith("gpu:")
        else phases
        for device, phases in prediction.memory.items()
    }
    return _outcome(problem, prediction.total_s, load_s, memory)


def _whole_load_s(setup: Setup, problem: Problem) -> float:
    model_bytes = graph_of(setup.model).num_parameters * problem.scenario.workload.itemsize_bytes
    held = sum(unit.stored_bytes for unit in problem.units)
    if PEERS in problem.scenario.execution.streams_from:
        held //= problem.scenario.execution.num_ranks
    return KERNEL_INJECTION.whole_load_s(problem.scenario, model_bytes=model_bytes, device_bytes=held)


def _zero(setup: Setup, batch_size: int) -> Outcome:
    """Price ZeRO-3 with all parameters partitioned over the GPUs, as in the published script.

    The script sets the persistence threshold to 0, so a Linear's bias is gathered together with its weight.
    AllGatherCoalescedHandle gathers them into one flat tensor and copies them from there, so the flat tensor,
    about as large as the weight, is needed in addition.
    """
    graph = graph_of(setup.model)
    widest = max(t.num_elements for n in graph.nodes if n.block is not None for t in n.tensors)
    flat = widest * DTYPE_BYTES[setup.dtype]
    profile = _machine(setup.machine)
    nccl = communicator_bytes(profile.num_gpus, profile.fabric) if profile.fabric is not None else 0
    return _on_ranks(
        setup, batch_size, ZERO_INFERENCE, PEERS, whole=True, staged_bytes=flat, context_bytes=nccl
    )


def _resident(setup: Setup, batch_size: int) -> Outcome:
    profile = _machine(setup.machine)
    execution = ExecutionConfig(runtime=ACCELERATE.name, label="one GPU", main="gpu:0")
    problem = _problem(setup, batch_size, profile, execution, ACCELERATE)
    assignment = Assignment.uniform(problem, "gpu:0")
    prediction = predict(problem, assignment)
    return _outcome(problem, prediction.total_s, prediction.load_s, prediction.memory)


def _outcome(
    problem: Problem, total_s: float, load_s: float, memory: dict[str, dict[str, MemoryBreakdown]]
) -> Outcome:
    return Outcome(
        total_s=total_s,
        new_tokens=problem.scenario.workload.new_tokens,
        num_sequences=problem.scenario.num_sequences,
        num_ranks=problem.scenario.execution.num_ranks,
        load_s=load_s,
        memory=fragmented(problem, memory),
    )


def _problem(
    setup: Setup,
    batch_size: int,
    profile: HardwareProfile,
    execution: ExecutionConfig,
    runtime_model: RuntimeModel,
) -> Problem:
    workload = Workload(
        batch_size=batch_size,
        prompt_tokens=setup.prompt_tokens,
        new_tokens=setup.new_tokens,
        dtype=setup.dtype,
    )
    sequences = workload.with_batch(batch_size * execution.num_streams)
    whole = Scenario.whole(graph_of(setup.model), profile, sequences, execution, runtime_model)
    return price(whole.of_one_rank())


@cache
def graph_of(model: str) -> ModuleGraph:
    """The graph of the whole model."""
    return load_model(model).graph


@cache
def _machine(name: str) -> HardwareProfile:
    return load(machine_file(name))


#: Name of a configuration in `setups.toml` → function that prices a setup at a batch size.
CONFIGURATIONS: Final[dict[str, Callable[[Setup, int], Outcome]]] = {
    "accelerate-first-fit": lambda setup, batch_size: _accelerate(setup, batch_size, first_fit),
    "accelerate-low-first": lambda setup, batch_size: _accelerate(setup, batch_size, low_first),
    "kernel-injection": lambda setup, batch_size: _on_ranks(setup, batch_size, KERNEL_INJECTION),
    "kernel-injection-whole": lambda setup, batch_size: _on_ranks(
        setup, batch_size, KERNEL_INJECTION, whole=True
    ),
    "zero-peers": _zero,
    "deepspeed-tp": lambda setup, batch_size: _on_ranks(setup, batch_size, DEEPSPEED_TP),
    "resident": _resident,
}
