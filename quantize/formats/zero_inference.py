"""`zero-inference`: the `weight_quantization` block by which DeepSpeed quantizes a model as it is loaded.

Nothing is converted beforehand: ZeRO-Inference takes the plain checkpoint in float16, and the choice made
here is part of its configuration. Only this order works (DeepSpeed 0.19.8):

1. build the model in float16;
2. `deepspeed.inference.quantization._init_group_wise_weight_quantization(model, config)`, its configuration
   without `zero_optimization` unless the model was built under an `HfDeepSpeedConfig`;
3. `deepspeed.zero.Init(module=model, config_dict_or_path=config)`, without which `initialize` moves the whole
   model to the device first;
4. `deepspeed.initialize(model=model, config=config)`.

Groups along the input dimension whose size is a multiple of 8 are decoded by a CUDA kernel and fail without a
GPU; along the output dimension they run anywhere.

Source: DeepSpeed 0.19.8, `inference/quantization/{quantization,layers,utils}.py`.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from reshard.errors import CheckpointError, OutputExistsError, UnsupportedTargetError
from reshard.formats.base import Source

from ..deepspeed_block import post_init_quant
from ..deepspeed_selection import EXPERTS, GROUP_DIM, NO_LINEAR, Refusal, Weight, choose, refusal
from ..families import OWN_LINEARS
from ..scheme import ZeroInference
from ..select import Decision

#: What a model's head is called as it runs, whatever the checkpoint calls it.
_HEAD: Final = "lm_head"


def notes(scheme: ZeroInference) -> tuple[str, ...]:
    """Notes for running the configuration."""
    what = (
        "ZeRO-Inference quantizes as it loads: give DeepSpeed this file and the plain checkpoint, in float16"
    )
    order = (
        "quantize before initialize: build the model, deepspeed.inference.quantization."
        "_init_group_wise_weight_quantization(model, the configuration without zero_optimization), "
        "deepspeed.zero.Init(module=model, config_dict_or_path=all of it), then deepspeed.initialize"
    )
    kernel = (
        f"groups of {scheme.group_size} along the input are decoded by DeepSpeed's CUDA kernel, and fail "
        "without a GPU"
    )
    needs_kernel = scheme.dim == 1 and scheme.group_size % 8 == 0
    return (what, order, kernel) if needs_kernel else (what, order)


def weight_quantization(
    source: Source, decisions: Mapping[str, Decision], scheme: ZeroInference
) -> dict[str, Any]:
    """What a DeepSpeed configuration says under `weight_quantization`.

    Its keys are parts of module names: DeepSpeed quantizes every Linear whose name contains one of them, and
    stops when a name contains two. Every key here is contained in the names of chosen modules alone.

    Args:
        source: the plain checkpoint.
        decisions: of `quantize.select.decide`.
        scheme: bits, group size and the dimension that groups run along.

    Raises:
        GroupSizeError: groups do not tile a weight, or its codes do not fill whole elements of float16.
        UnsupportedTargetError: nothing is chosen, or something that DeepSpeed would silently pass over.
    """
    chosen = [decision for decision in decisions.values() if decision.is_quantized]
    if not chosen:
        raise UnsupportedTargetError(f"{source.folder.path('')}: {NO_LINEAR}")
    for decision in chosen:
        refused = refusal(weight_of(source, decision), scheme)
        if refused is not None:
            raise _error(refused)
    modules = {decision.module for decision in decisions.values()} | {_HEAD}
    return {"post_init_quant": post_init_quant(list(_running_names(chosen)), modules, scheme)}


def fitting_scheme(
    source: Source, decisions: Mapping[str, Decision], bits: int, *, dim: int = GROUP_DIM
) -> ZeroInference:
    """The scheme that the planner takes as well: the largest groups, up to 64, that tile every chosen weight.

    Args:
        source: the plain checkpoint.
        decisions: of `quantize.select.decide`.
        bits: 8 or 4.
        dim: the dimension that groups run along.
    """
    chosen = [weight_of(source, decision) for decision in decisions.values() if decision.is_quantized]
    return choose(chosen, bits, dim=dim).scheme


def weight_of(source: Source, decision: Decision) -> Weight:
    """A tensor of the checkpoint as the parameter that transformers makes of it."""
    kind = source.model.model_type
    class_name = OWN_LINEARS.get(kind, "Linear")
    if decision.role in ("embedding", "position"):
        class_name = "Embedding"
    if ".experts." in decision.name:
        class_name = EXPERTS
    return Weight(
        module=decision.module,
        class_name=class_name,
        shape=source.tensors[decision.name].shape,
        model_type=kind,
    )


def ds_config(source: Source, decisions: Mapping[str, Decision], scheme: ZeroInference) -> dict[str, Any]:
    """A whole DeepSpeed configuration: ZeRO-3 from the host's memory, with the weights quantized.

    Args:
        source: the plain checkpoint.
        decisions: of `quantize.select.decide`.
        scheme: bits, group size and the dimension that groups run along.

    Raises:
        GroupSizeError: as `weight_quantization`.
        UnsupportedTargetError: the same.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "fp16": {"enabled": True},
        "weight_quantization": weight_quantization(source, decisions, scheme),
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": True},
            # Linears that stay are then computed as the plain model computes them, to the bit.
            "memory_efficient_linear": False,
        },
    }


def write_ds_config(
    path: Path,
    source: Source,
    decisions: Mapping[str, Decision],
    scheme: ZeroInference,
    *,
    overwrite: bool = False,
) -> None:
    """Write `ds_config` as JSON; the file appears whole or not at all.

    Args:
        path: the file, such as `ds_config.json`; its folder is made.
        source: the plain checkpoint.
        decisions: of `quantize.select.decide`.
        scheme: bits, group size and the dimension that groups run along.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputExistsError: it may not.
        GroupSizeError: as `weight_quantization`.
        UnsupportedTargetError: the same.
    """
    text = json.dumps(ds_config(source, decisions, scheme), indent=2) + "\n"
    if os.path.lexists(path) and not overwrite:
        raise OutputExistsError(f"{path} exists; give another `output`, or `overwrite`")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _error(refused: Refusal) -> CheckpointError:
    return refused.error(f"{refused.sentence}; {refused.hint}" if refused.hint else refused.sentence)


def _running_names(chosen: Iterable[Decision]) -> Iterable[str]:
    """The names of chosen modules in the running model, which has its own for a head."""
    for decision in chosen:
        if decision.role == "head":
            yield _HEAD
        yield decision.module
