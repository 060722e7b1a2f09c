"""A DeepSpeed configuration that a user gives, priced with the cost model of a plan."""

from collections import Counter
from typing import Any, Final

import msgspec

from planner.cost.assignment import Assignment
from planner.cost.build_problem import price
from planner.cost.placement_units import Leaf
from planner.cost.problem import Problem
from planner.cost.runtime_model import Scenario
from planner.errors import InvalidInputError
from planner.graph.model import Model
from planner.graph.schema import ModuleGraph
from planner.runtimes.zero_inference.model import ZeroInferenceRuntime, configuration
from planner.runtimes.zero_inference.parameters import marked, parameters
from planner.runtimes.zero_inference.quantization import weights_of, with_schemes
from planner.runtimes.zero_inference.sizes import Sizes, sizes_for
from planner.runtimes.zero_inference.validate import Finding, zero_block
from planner.schema.execution import ExecutionConfig
from planner.schema.hardware import HardwareProfile
from planner.schema.workload import DTYPE_BYTES, Workload
from planner.search.best_placement import PricedPlacement, price_assignment
from quantize.deepspeed_block import initialized, matched
from quantize.scheme import ZeroInference
from reshard.errors import CheckpointError, UnsupportedTargetError

#: DeepSpeed's name of a store → the planner's.
_STORES: Final = {"cpu": "cpu", "nvme": "disk", "none": "peers"}


def dtype_of(config: dict[str, Any]) -> str:
    """The dtype that a configuration runs a model in."""
    for key, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        if (config.get(key) or {}).get("enabled"):
            return dtype
    return "float32"


def price_ds_config(
    model: Model, profile: HardwareProfile, workload: Workload, config: dict[str, Any]
) -> PricedPlacement:
    """A configuration, priced whether or not it fits, with a rank on every GPU of the profile.

    Args:
        model: the model to run.
        profile: the machine.
        workload: lengths, the batch of all ranks together, and the configuration's dtype.
        config: the configuration, checked (see `planner.runtimes.zero_inference.validate`).

    Raises:
        InvalidInputError: the machine has no GPU or no disk that the configuration needs, or its NVMe
            buffers are smaller than a part of the model.
    """
    zero = zero_block(config)
    execution = _execution(zero, profile)
    graph = _held(model.graph, config)
    sizes = _sizes(zero, graph, execution)
    runtime_model = ZeroInferenceRuntime(sizes)
    problem = price(Scenario.whole(graph, profile, workload, execution, runtime_model).of_one_rank())
    owned = parameters(graph)
    kept = marked(owned, each=zero.param_persistence_threshold, together=zero.model_persistence_threshold)
    return price_assignment(problem, _assignment(problem, kept))


def quantization_findings(graph: ModuleGraph, config: dict[str, Any]) -> list[Finding]:
    """What DeepSpeed would reject or silently ignore in a `weight_quantization` block for this model.

    The types of the configuration's blocks are checked already (`planner.runtimes.zero_inference.validate`).
    """
    block = _quantization(config)
    findings = []
    try:
        schemes = schemes_of(graph, config)
    except CheckpointError as error:
        sentence = f"DeepSpeed rejects weight_quantization: {error}"
        return [Finding(kind="rejected", sentence=sentence)]
    if block.get("post_init_quant") and not schemes:
        keys = ", ".join(map(repr, block["post_init_quant"]))
        sentence = (
            f"weight_quantization.post_init_quant quantizes nothing: no Linear or Embedding of "
            f"{graph.model_class} has {keys} in its name"
        )
        findings.append(Finding(kind="ignored", sentence=sentence))
    is_wrapped = (config.get("zero_optimization") or {}).get("memory_efficient_linear", True)
    if block.get("quantized_initialization") and not is_wrapped:
        sentence = (
            "weight_quantization.quantized_initialization fails with memory_efficient_linear false: "
            "DeepSpeed then quantizes weights and never decodes them; leave memory_efficient_linear out"
        )
        findings.append(Finding(kind="harmful", sentence=sentence))
    return findings


def schemes_of(graph: ModuleGraph, config: dict[str, Any]) -> dict[str, ZeroInference]:
    """Which weights of a model a configuration quantizes: module → scheme.

    Raises:
        CheckpointError: DeepSpeed rejects the block, or would quantize quantized codes again.
    """
    block, weights = _quantization(config), weights_of(graph)
    setting, keys = block.get("quantized_initialization"), block.get("post_init_quant")
    if setting and keys:
        raise UnsupportedTargetError(
            "post_init_quant would quantize the codes of quantized_initialization once more; leave one of "
            "them out"
        )
    if setting:
        itemsize = DTYPE_BYTES[dtype_of(config)]
        schemes = initialized(weights, setting, itemsize_bytes=itemsize)
        for tie in graph.ties:
            # Tied weights are one parameter, which the first module owns.
            first, *others = (fqn.rpartition(".")[0] for fqn in tie)
            for module in others:
                schemes.pop(module, None)
                if first in schemes:
                    schemes[module] = schemes[first]
        return schemes
    if keys and dtype_of(config) != "float16":
        raise UnsupportedTargetError(f"post_init_quant needs float16, not {dtype_of(config)}")
    return matched(weights, keys or {})


def _quantization(config: dict[str, Any]) -> dict[str, Any]:
    block = config.get("weight_quantization")
    # DeepSpeed 0.19.8 ignores its key `enabled`.
    return block if isinstance(block, dict) else {}


def _held(graph: ModuleGraph, config: dict[str, Any]) -> ModuleGraph:
    """The model with the weights packed that the configuration quantizes."""
    try:
        schemes = schemes_of(graph, config)
    except CheckpointError as error:
        raise InvalidInputError(f"weight_quantization: {error}") from error
    if not schemes:
        return graph
    is_built_so = bool(_quantization(config).get("quantized_initialization"))
    itemsize = DTYPE_BYTES[dtype_of(config)]
    return with_schemes(graph, schemes, itemsize_bytes=itemsize, is_loaded_whole=not is_built_so)


def _execution(zero: Any, profile: HardwareProfile) -> ExecutionConfig:
    offload = zero.offload_param
    device = "none" if offload is None else str(getattr(offload.device, "value", offload.device))
    store = _STORES[device]
    if profile.num_gpus == 0:
        raise InvalidInputError(f"{profile.name} has no GPU to run a ds_config on")
    if store == "disk" and profile.disk is None:
        raise InvalidInputError(
            f"the configuration offloads to NVMe, and {profile.name} has none; add `nvme=1TB@3GB/s`"
        )
    pinned = offload is None or offload.pin_memory
    label = f"the given configuration, {profile.num_gpus} GPUs"
    return configuration(label, store, profile.num_gpus, pinned=pinned)


def _sizes(zero: Any, graph: ModuleGraph, execution: ExecutionConfig) -> Sizes:
    """The configuration's sizes; those of buffers are used with NVMe only."""
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
    per_module = Counter(parameter.module for parameter in parameters(graph) if not parameter.is_vector)
    least = max(per_module.values(), default=1)
    if offload.buffer_count < least:
        raise InvalidInputError(
            f"offload_param.buffer_count is {offload.buffer_count}, and one module of {graph.model_class} "
            f"has {least} parameters that are read together; make it at least {chosen.num_buffers}"
        )
    return msgspec.structs.replace(stated, num_buffers=offload.buffer_count, buffer=int(offload.buffer_size))


def _assignment(problem: Problem, kept: frozenset[str]) -> Assignment:
    """The assignment in which a leaf is resident when all its matrices are kept, or all its vectors.

    Vectors decide only where a leaf has no matrix.
    """
    main, (store,) = problem.scenario.execution.main, problem.scenario.execution.streams_from
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
