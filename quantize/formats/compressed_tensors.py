"""`compressed-tensors`: what transformers and vLLM read; `pack-quantized` weights, or `int-quantized` W8A8.

Source: compressed-tensors 0.20, `compressors/pack_quantized` and `naive_quantized`, and its configuration.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np

from reshard.encoding import Encoded, Encoder
from reshard.errors import UnsupportedTargetError
from reshard.formats.base import Source
from reshard.layout import Box
from reshard.tensors import LogicalTensor

from ..errors import GroupSizeError
from ..families import FLOAT32, LOOKS_AT_WEIGHTS
from ..groups import blocks, search, symmetric
from ..packing import pack, packed_columns, weight_shape
from ..select import Decision
from .base import Output
from .encoders import RowEncoder

_SCALES: Final[dict[str, Any]] = {"absmax": symmetric, "search": search}


def output(
    *,
    bits: int = 8,
    group_size: int | None = 128,
    scales: Literal["absmax", "search"] = "search",
    activations: bool = False,
    allow_nonfinite: bool = False,
) -> Output:
    """The format, for one scheme.

    Args:
        bits: 8 or 4.
        group_size: weights per scale along the input dimension; None: one scale per row.
        scales: from the largest weight, as compressed-tensors itself takes them, or for the least error.
        activations: W8A8: weights unpacked, activations quantized by token as the model runs.
        allow_nonfinite: take NaN and infinities for zero.
    """
    form = "int-quantized" if activations else "pack-quantized"
    if activations and (bits != 8 or group_size is not None):
        raise UnsupportedTargetError("W8A8 is 8 bits with one scale per row; give `group_size='row'`")

    def derived(name: str, tensor: LogicalTensor) -> dict[str, LogicalTensor]:
        return _derived(name, tensor, bits, group_size, is_packed=not activations)

    def encoder(name: str, tensor: LogicalTensor) -> Encoder:
        def encode(box: Box, block: blocks.Block) -> Iterable[Encoded]:
            encoded = _SCALES[scales].encode(block, group_size=group_size, bits=bits)
            yield from _strips(name, box, encoded, bits, tensor.shape, is_packed=not activations)

        return RowEncoder(name, tensor.dtype, encode, allow_nonfinite=allow_nonfinite)

    def config(source: Source, decisions: Mapping[str, Decision]) -> dict[str, Any]:
        return _config(source, decisions, form, bits, group_size, activations=activations)

    return Output(
        name="compressed-tensors",
        target="huggingface",
        derived=derived,
        encoder=encoder,
        config=config,
        notes=_notes,
    )


def _notes(source: Source) -> tuple[str, ...]:
    loaded = "transformers (with compressed-tensors installed) and vLLM load it"
    kind = source.model.model_type
    if kind not in LOOKS_AT_WEIGHTS:
        return (loaded,)
    decoded = (
        f"transformers loads {kind} only with quantization_config=CompressedTensorsConfig(dequantize=True), "
        "which decodes the weights: its initialisation looks at weights that compressed Linears do not have"
    )
    return loaded, decoded


def _derived(
    name: str, tensor: LogicalTensor, bits: int, group_size: int | None, *, is_packed: bool
) -> dict[str, LogicalTensor]:
    rows, columns = tensor.shape
    if group_size is not None and columns % group_size:
        works = [g for g in (256, 128, 64, 32, 16, 8) if columns % g == 0]
        raise GroupSizeError(
            f"{name} has {columns} columns, which groups of {group_size} do not divide; "
            f"`group_size={', '.join(map(str, works)) or 'row'}` would"
        )
    module = name.removesuffix(".weight")
    scales = LogicalTensor(
        dtype=tensor.dtype, shape=(rows, 1 if group_size is None else columns // group_size)
    )
    if not is_packed:
        return {name: LogicalTensor(dtype="int8", shape=tensor.shape), f"{module}.weight_scale": scales}
    return {
        f"{module}.weight_packed": LogicalTensor(dtype="int32", shape=(rows, packed_columns(columns, bits))),
        f"{module}.weight_scale": scales,
        f"{module}.weight_shape": LogicalTensor(dtype="int64", shape=(2,)),
    }


def _strips(
    name: str, box: Box, encoded: blocks.Encoded, bits: int, shape: tuple[int, ...], *, is_packed: bool
) -> Iterable[Encoded]:
    module = name.removesuffix(".weight")
    rows = box[0]
    codes = pack(encoded.codes, bits) if is_packed else encoded.codes
    yield f"{module}.weight_packed" if is_packed else name, (rows, (0, codes.shape[1])), codes
    yield f"{module}.weight_scale", (rows, (0, encoded.scales.shape[1])), encoded.scales
    if is_packed and rows[0] == 0:
        yield f"{module}.weight_shape", ((0, 2),), np.ascontiguousarray(weight_shape(shape))


def _config(
    source: Source,
    decisions: Mapping[str, Decision],
    form: str,
    bits: int,
    group_size: int | None,
    *,
    activations: bool,
) -> dict[str, Any]:
    experts = [name for name in decisions if ".experts." in name]
    if experts:
        raise UnsupportedTargetError(
            f"{experts[0]}: transformers 5.23 joins experts as it loads them, and fails to in any checkpoint "
            "of compressed-tensors; take `format='bitsandbytes'` with `exclude='*.experts.*'`, or "
            "`format='safetensors'`"
        )
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ignored(source, decisions),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "channel" if group_size is None else "group",
                    "group_size": group_size,
                    "dynamic": False,
                },
                "input_activations": _BY_TOKEN if activations else None,
            }
        },
    }


_BY_TOKEN: Final = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def ignored(source: Source, decisions: Mapping[str, Decision]) -> list[str]:
    """Modules that may be Linears and stay as they are, by the names of the running model.

    Raises:
        UnsupportedTargetError: a weight is chosen that the running model holds in no Linear, such as experts,
            which it stacks; or in one whose weight it looks at before the library has decoded it.
    """
    _check_linears(source, [d for d in decisions.values() if d.is_quantized])
    # A tied head has no tensor of its own, and one of GPT-NeoX has another name on disk.
    has_head = any(d.is_quantized and d.role == "head" for d in decisions.values())
    modules = set() if has_head else {"lm_head"}
    for name, decision in decisions.items():
        is_matrix = name.endswith(".weight") and len(source.tensors[name].shape) == 2
        if is_matrix and not decision.is_quantized and decision.role not in ("embedding", "position"):
            modules.add(decision.module)
    return sorted(modules)


def _check_linears(source: Source, chosen: Iterable[Decision]) -> None:
    kept = FLOAT32.get(source.model.model_type)
    for decision in chosen:
        if ".experts." in decision.name:
            raise UnsupportedTargetError(
                f"{decision.name}: transformers stacks experts, and reads no quantized ones; "
                "leave them out: `exclude='*.experts.*'`"
            )
        if decision.module.rpartition(".")[2] == kept:
            raise UnsupportedTargetError(
                f"{decision.name}: transformers keeps it in float32 and fails on a quantized one; "
                f"leave it out: `exclude='*.{kept}'`"
            )
        if decision.role in ("embedding", "position", "replicated"):
            raise UnsupportedTargetError(
                f"{decision.name} is no Linear of a block, nor the head: transformers reads no such codes; "
                "leave it out of `include`"
            )
