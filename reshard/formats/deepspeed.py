"""`deepspeed`: pre-shards for kernel injection, `ds_inference_config.json` and what it names.

Source: DeepSpeed 0.19.8, module_inject/load_checkpoint.py and containers, and bytes that it wrote itself.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from reshard.errors import UnsupportedTargetError
from reshard.rules import Rules, check_heads

from .base import Format, Layout, Options, Source, TargetFile
from .deepspeed_layout import CODES, INDEX_FILE, layer_tensors, outside_tensors
from .deepspeed_source import read_deepspeed
from .injected import check_family, ignored_setting
from .layers import Layer, Layers

_NON_TP: Final = "non-tp.pt"
_NOTE: Final = "DeepSpeed's kernel injection takes it, on as many GPUs as ranks, with transformers 4.43"
_INT8_NOTE: Final = (
    "DeepSpeed's loader takes int8 at this degree alone, and 0.19.8 does not come to it: its init_inference "
    "refuses dtype=torch.int8"
)


def _write(source: Source, options: Options) -> Layout:
    _check(source, options.tp_size)
    layers = Layers(Rules(source.model, source.tensors))
    parts = list(_partitions(source, layers, options))
    files = [TargetFile(name=_NON_TP, container="torch", tensors=tuple(outside_tensors(source, layers)))]
    names = []
    for number, part in enumerate(parts):
        for rank in range(options.tp_size):
            name = f"tp_{rank:02d}_{number:02d}.pt"
            tensors = tuple(t for layer in part for t in layer_tensors(layers, layer, options.tp_size, rank))
            lists = tuple(t.name.removesuffix(CODES) for t in tensors if t.name.endswith(CODES))
            files.append(TargetFile(name=name, container="torch", tensors=tensors, rank=rank, lists=lists))
            names.append(name)
    notes = [_INT8_NOTE if _recipe(source) else _NOTE]
    if "local" in str(source.model.config.get("attention_types", "")):
        notes.append(
            "sequences must stay shorter than the window of local attention, which its kernel misplaces"
        )
    return Layout(
        format="deepspeed",
        tp_size=options.tp_size,
        files=tuple(files),
        side_files={INDEX_FILE: _config(source, options.tp_size, names)},
        notes=tuple(notes),
    )


def _check(source: Source, tp_size: int) -> None:
    check_family(source.model.model_type)
    _check_recipe(source, tp_size)
    ignored = ignored_setting(source.model.config)
    if ignored is not None:
        raise UnsupportedTargetError(ignored)
    check_heads(source.model, tp_size)


def _recipe(source: Source) -> dict[str, Any] | None:
    return source.model.config.get("quantization_config") or None


def _check_recipe(source: Source, tp_size: int) -> None:
    recipe = _recipe(source)
    if recipe is None:
        return
    if recipe.get("format") != "deepspeed":
        raise UnsupportedTargetError("the deepspeed format holds no quantized weights of other libraries")
    if recipe.get("tp_size") != tp_size:
        raise UnsupportedTargetError(
            f"the int8 weights have one scale for every row of a rank at tp_size={recipe.get('tp_size')}, "
            f"not at tp_size={tp_size}; quantize the plain checkpoint for that degree"
        )


def _partitions(source: Source, layers: Layers, options: Options) -> Iterator[list[Layer]]:
    """Layers in groups: a rank reads each file whole into memory, so files must not be too large."""
    group: list[Layer] = []
    used = 0
    for layer in layers.layers:
        size = sum(t.size_bytes for t in layer_tensors(layers, layer, options.tp_size, 0))
        if group and used + size > options.max_shard_bytes:
            yield group
            group, used = [], 0
        group.append(layer)
        used += size
    yield group


def _config(source: Source, tp_size: int, names: list[str]) -> bytes:
    kinds = {t.dtype for t in source.tensors.values() if t.dtype.endswith(("float16", "float32"))}
    text = {
        # Any other type, and the loader asks for another file layout.
        "type": "bloom" if source.model.model_type == "bloom" else "ds_model",
        "checkpoints": {"non_tp": [_NON_TP], "tp": names},
        "version": 1.0,
        "parallelization": "tp",
        "tp_size": tp_size,
        "dtype": "int8" if _recipe(source) else kinds.pop() if len(kinds) == 1 else "float16",
    }
    return (json.dumps(text, indent=2) + "\n").encode()


def _evidence(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in names if n == INDEX_FILE)


FORMAT: Final = Format(
    name="deepspeed",
    evidence=_evidence,
    read=read_deepspeed,
    write=_write,
)
