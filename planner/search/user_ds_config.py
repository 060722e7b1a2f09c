"""A configuration that somebody else wrote, priced by the same sums as a plan's."""

from collections import Counter
from typing import Any, Final

import msgspec

from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.placement_units import Leaf, chain_of
from planner.cost.problem import Problem
from planner.cost.runtime_model import ExecutionConfig
from planner.errors import InvalidInputError
from planner.graph.model import Model
from planner.graph.network import placement_units
from planner.graph.schema import ModuleGraph
from planner.runtimes.zero_inference.model import ZeroInferenceRuntime, way
from planner.runtimes.zero_inference.parameters import marked, parameters
from planner.runtimes.zero_inference.sizes import Sizes, sizes_for
from planner.runtimes.zero_inference.validate import zero_block
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import Workload
from planner.search.best_placement import PricedPlacement, price_assignment

#: DeepSpeed's word for a store → the planner's.
_STORES: Final = {"cpu": "cpu", "nvme": "disk", "none": "peers"}


def dtype_of(config: dict[str, Any]) -> str:
    """The dtype that a configuration runs a model in."""
    for key, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        if (config.get(key) or {}).get("enabled"):
            return dtype
    return "float32"


def candidate_of(
    model: Model, profile: HardwareProfile, workload: Workload, config: dict[str, Any]
) -> PricedPlacement:
    """A configuration as a candidate, whether or not it fits, with a rank on every GPU of the profile.

    Args:
        model: what to run.
        profile: the machine.
        workload: lengths, the batch of all ranks together, and the configuration's dtype.
        config: checked (see `planner.runtimes.zero_inference.validate`).

    Raises:
        InvalidInputError: the machine has no GPU or no disk that the configuration needs, or its NVMe
            buffers are smaller than a part of the model.
    """
    zero = zero_block(config)
    execution = _settings(zero, profile)
    found = parameters(model.graph)
    sizes = _sizes(zero, model.graph, execution)
    runtime_model = ZeroInferenceRuntime(sizes)
    share = workload.with_batch(-(-workload.batch_size // execution.num_streams))
    chain = chain_of(model.graph, placement_units(model.graph))
    problem = price(
        model.graph, chain, profile, share, execution, runtime_model, num_sequences=workload.batch_size
    )
    kept = marked(found, each=zero.param_persistence_threshold, together=zero.model_persistence_threshold)
    return price_assignment(problem, _assignment(problem, kept))


def _settings(zero: Any, profile: HardwareProfile) -> ExecutionConfig:
    offload = zero.offload_param
    device = "none" if offload is None else str(getattr(offload.device, "value", offload.device))
    store = _STORES[device]
    if profile.num_gpus == 0:
        raise InvalidInputError(f"{profile.name} has no GPU to run a ds_config on")
    if store == "disk" and profile.disk is None:
        raise InvalidInputError(
            f"the configuration offloads to NVMe, and {profile.name} has none; add --nvme 1TB@3GB/s"
        )
    pinned = offload is None or offload.pin_memory
    label = f"the given configuration, {profile.num_gpus} GPUs"
    return way(label, store, profile.num_gpus, pinned=pinned)


def _sizes(zero: Any, graph: ModuleGraph, execution: ExecutionConfig) -> Sizes:
    """The configuration's own; its buffers are used for NVMe alone."""
    chosen = sizes_for(graph)
    stated = msgspec.structs.replace(
        chosen,
        prefetch_bucket=zero.prefetch_bucket_size,
        max_live=zero.max_live_parameters,
        reuse_distance=zero.max_reuse_distance,
    )
    if execution.streams_from != ("disk",):
        return stated
    offload, needed = zero.offload_param, -(-chosen.largest // execution.num_ranks)
    if offload.buffer_size < needed:
        raise InvalidInputError(
            f"offload_param.buffer_size is {offload.buffer_size} elements, and the largest part of "
            f"{graph.model_class} over {execution.num_ranks} ranks has {needed}; make it at least that"
        )
    per_module = Counter(one.module for one in parameters(graph) if not one.is_vector)
    least = max(per_module.values(), default=1)
    if offload.buffer_count < least:
        raise InvalidInputError(
            f"offload_param.buffer_count is {offload.buffer_count}, and one module of {graph.model_class} "
            f"has {least} parameters that are read at once; make it at least {2 * least + 3}"
        )
    return msgspec.structs.replace(stated, num_buffers=offload.buffer_count, buffer=int(offload.buffer_size))


def _assignment(problem: Problem, kept: frozenset[str]) -> Assignment:
    """A leaf is resident when every matrix in it is kept, or every vector where it has no matrix."""
    main, (store,) = problem.execution.main, problem.execution.streams_from
    return Assignment(
        runs_on=(main,) * len(problem.units),
        stored_on=tuple(
            tuple(main if _is_kept(leaf.leaf, kept) else store for leaf in unit.leaves)
            for unit in problem.units
        ),
    )


def _is_kept(leaf: Leaf, kept: frozenset[str]) -> bool:
    owned = [t for tensors in leaf.tensors for t in tensors if t.canonical and t.tensor.kind == "parameter"]
    matrices = [t for t in owned if len(t.tensor.shape) > 1]
    return all(t.fqn in kept for t in matrices or owned)
