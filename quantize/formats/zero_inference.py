"""`zero-inference`: the `weight_quantization` block by which DeepSpeed quantizes a model as it is loaded.

Nothing is converted beforehand: ZeRO-Inference takes the plain checkpoint in float16, and what is chosen here
stands in its configuration. Only this order works (DeepSpeed 0.19.8): the model built in float16, then
`deepspeed.inference.quantization._init_group_wise_weight_quantization(model, config)`, then
`deepspeed.zero.Init(module=model, config_dict_or_path=config)`, without which `initialize` moves the whole
model to the device first, then `deepspeed.initialize(model=model, config=config)`. The second takes the
configuration without `zero_optimization`, unless the model was built under an `HfDeepSpeedConfig`.

Groups along the input dimension whose size is a multiple of 8 are decoded by a CUDA kernel and fail without a
GPU; along the output dimension they run anywhere.

Source: DeepSpeed 0.19.8, `inference/quantization/{quantization,layers,utils}.py`.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from reshard.errors import OutputExistsError, UnsupportedTargetError
from reshard.formats.base import Source

from ..errors import GroupSizeError
from ..scheme import ZeroInference
from ..select import FLOAT32, OWN_LINEARS, Decision

#: What a model's head is called as it runs, whatever the checkpoint calls it.
_HEAD: Final = "lm_head"


def notes(scheme: ZeroInference) -> tuple[str, ...]:
    """What somebody who runs it must know."""
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
        UnsupportedTargetError: nothing is chosen, or something that DeepSpeed would pass over in silence.
    """
    chosen = [d for d in decisions.values() if d.is_quantized]
    if not chosen:
        raise UnsupportedTargetError(
            f"{source.folder.path('')} has no Linear that is chosen; ZeRO-Inference quantizes nothing else"
        )
    if source.model.model_type in OWN_LINEARS:
        raise UnsupportedTargetError(
            f"DeepSpeed passes over every Linear of {source.model.model_type}, whose class is the family's "
            "own; take another format"
        )
    for decision in chosen:
        _check(source, decision, scheme)
    setting = {
        "num_bits": scheme.bits,
        "group_size": scheme.group_size,
        "group_dim": scheme.dim,
        "symmetric": False,
    }
    return {"post_init_quant": {key: dict(setting) for key in _keys(chosen, decisions.values())}}


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
        overwrite: whether a file that stands there may be replaced.

    Raises:
        OutputExistsError: it may not.
        GroupSizeError: as `weight_quantization`.
        UnsupportedTargetError: the same.
    """
    text = json.dumps(ds_config(source, decisions, scheme), indent=2) + "\n"
    if os.path.lexists(path) and not overwrite:
        raise OutputExistsError(f"{path} exists; give another --output, or --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check(source: Source, decision: Decision, scheme: ZeroInference) -> None:
    if ".experts." in decision.name:
        raise UnsupportedTargetError(
            f"{decision.name}: transformers stacks experts into tensors that no Linear has, which DeepSpeed "
            "passes over; --exclude '*.experts.*'"
        )
    if decision.role in ("embedding", "position"):
        raise UnsupportedTargetError(
            f"{decision.name}: DeepSpeed quantizes plain Embeddings and passes over the many that families "
            "derive from them; leave embeddings out of --include"
        )
    if decision.module.rpartition(".")[2] == FLOAT32.get(source.model.model_type):
        raise UnsupportedTargetError(
            f"{decision.name}: transformers keeps it in float32, and DeepSpeed quantizes float16 only; "
            f"--exclude '*.{FLOAT32[source.model.model_type]}'"
        )
    shape = source.tensors[decision.name].shape
    try:
        scheme.scale_shape(shape)
    except GroupSizeError as error:
        raise GroupSizeError(f"{decision.name}: {error}") from None
    per_float16 = 16 // scheme.bits
    if shape[1] % per_float16:
        raise GroupSizeError(
            f"{decision.name}: DeepSpeed keeps {per_float16} codes in one element of float16, which do not "
            f"divide its input dimension of {shape[1]}; --exclude {decision.name}"
        )


def _keys(chosen: Iterable[Decision], decisions: Iterable[Decision]) -> Iterator[str]:
    """The fewest parts of names: what stands behind the layer's number, where that says enough."""
    modules = {d.module for d in decisions} | {_HEAD}
    groups: dict[str, set[str]] = {}
    for decision in chosen:
        if decision.role == "head":
            groups.setdefault(_HEAD, set()).add(_HEAD)
        groups.setdefault(_tail(decision.module), set()).add(decision.module)
    for tail, group in groups.items():
        if _matched(tail, modules) == group:
            yield tail
            continue
        for module in sorted(group):
            if _matched(module, modules) != {module}:
                others = ", ".join(sorted(_matched(module, modules) - {module})[:3])
                raise UnsupportedTargetError(
                    f"DeepSpeed would quantize {others} with {module}, whose name is a part of theirs; "
                    "choose all of them, or none"
                )
            yield module


def _matched(key: str, modules: Iterable[str]) -> set[str]:
    return {module for module in modules if key in module}


def _tail(module: str) -> str:
    """`.attn.q_proj` of `transformer.h.0.attn.q_proj`; all of a name without numbers."""
    segments = module.split(".")
    numbers = [i for i, segment in enumerate(segments) if segment.isdecimal()]
    return "." + ".".join(segments[numbers[-1] + 1 :]) if numbers else module
