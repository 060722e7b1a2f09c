"""`deepspeed`: pre-shards for kernel injection, `ds_inference_config.json` and what it names.

Source: DeepSpeed 0.19.8, module_inject/load_checkpoint.py and containers, and bytes that it wrote itself.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from reshard.architectures.schema import Role
from reshard.errors import (
    DamagedFileError,
    InconsistentShardsError,
    MissingFileError,
    UnsupportedSourceError,
    UnsupportedTargetError,
)
from reshard.model import Model
from reshard.rules import Rule, Rules, check_heads
from reshard.storage import Folder, read
from reshard.tensors import Logical, Stored, copy_of

from .base import Format, Layout, Options, Source, SourceFile, TargetFile, shown
from .injected import FAMILIES, ignored_setting
from .layers import Layer, Layers, Share, columns, fused
from .naming import Expected, one_dtype, placed
from .per_rank import read_rank_files
from .reading import contents, model_of

CONFIG: Final = "ds_inference_config.json"
_NON_TP: Final = "non-tp.pt"
#: BLOOM's kernel takes its heads as the checkpoint has them.
_HEAD_BLOCKS: Final = ("bloom",)

#: Our role → the injected module's parameter, for weight and bias.
_NORMS: Final[dict[Role, tuple[str, str]]] = {
    "input_norm": ("norm_w", "norm_b"),
    "post_attention_norm": ("mlp.attn_nw", "mlp.attn_nb"),
}
_ROWS: Final[dict[Role, tuple[str, str]]] = {
    "attention_output": ("attention.attn_ow", "attention.attn_ob"),
    "mlp_output": ("mlp.output_w", "mlp.output_b"),
}
_PARAMS: Final = ("weight", "bias")


class _Files(msgspec.Struct, frozen=True):
    non_tp: tuple[str, ...]
    tp: tuple[str, ...]


class _Config(msgspec.Struct, frozen=True):
    checkpoints: _Files
    tp_size: int


def _write(source: Source, options: Options) -> Layout:
    _check(source, options.tp_size)
    layers = Layers(Rules(source.model, source.tensors))
    parts = list(_partitions(source, layers, options))
    files = [TargetFile(name=_NON_TP, container="torch", tensors=tuple(_outside(source, layers)))]
    names = []
    for number, part in enumerate(parts):
        for rank in range(options.tp_size):
            name = f"tp_{rank:02d}_{number:02d}.pt"
            tensors = tuple(t for layer in part for t in _layer(source, layers, layer, options.tp_size, rank))
            files.append(TargetFile(name=name, container="torch", tensors=tensors, rank=rank))
            names.append(name)
    notes = ["DeepSpeed's kernel injection takes it, on as many GPUs as ranks, with transformers 4.43"]
    if "local" in str(source.model.config.get("attention_types", "")):
        notes.append(
            "sequences must stay shorter than the window of local attention, which its kernel misplaces"
        )
    if layers.buffers:
        notes.append(f"{len(layers.buffers)} buffers, such as {layers.buffers[0]}, are left out")
    return Layout(
        format="deepspeed",
        tp_size=options.tp_size,
        files=tuple(files),
        texts={CONFIG: _config(source, options.tp_size, names)},
        notes=tuple(notes),
    )


def _check(source: Source, tp_size: int) -> None:
    kind = source.model.model_type
    if kind not in FAMILIES:
        raise UnsupportedTargetError(
            f"DeepSpeed's kernel injection cannot load {kind!r} from pre-shards; it can {', '.join(FAMILIES)}"
        )
    if source.model.config.get("quantization_config"):
        raise UnsupportedTargetError("the deepspeed format holds no quantized weights of other libraries")
    ignored = ignored_setting(source.model.config)
    if ignored is not None:
        raise UnsupportedTargetError(ignored)
    check_heads(source.model, tp_size)


def _partitions(source: Source, layers: Layers, options: Options) -> Iterator[list[Layer]]:
    """Layers in groups: a rank reads each file whole into memory, so files must not be too large."""
    group: list[Layer] = []
    used = 0
    for layer in layers.layers:
        size = sum(t.size_bytes for t in _layer(source, layers, layer, options.tp_size, 0))
        if group and used + size > options.max_shard_bytes:
            yield group
            group, used = [], 0
        group.append(layer)
        used += size
    yield group


def _layer(source: Source, layers: Layers, layer: Layer, tp_size: int, tp_rank: int) -> Iterator[Stored]:
    for role, names in _NORMS.items():
        for param, name in zip(_PARAMS, names, strict=True):
            rule = _rule(layer, role, param)
            if rule is not None:
                yield copy_of(rule.name, layers.tensor(rule), stored_as=f"{layer.prefix}.{name}")
    geometry = layers.rules.geometry
    heads = geometry.heads // tp_size
    units = (tp_rank * heads, (tp_rank + 1) * heads)
    blocks = heads if source.model.model_type in _HEAD_BLOCKS else 1
    shares = [Share(part=part, units=units) for part in ("query", "key", "value")]
    for param, name in zip(_PARAMS, ("attention.attn_qkvw", "attention.attn_qkvb"), strict=True):
        stored = fused(f"{layer.prefix}.{name}", layers, layer, param, shares, blocks)
        if stored is not None:
            yield _transposed(stored)
    yield from _mlp_up(layers, layer, tp_size, tp_rank)
    for role, (weight, bias) in _ROWS.items():
        rule = _rule(layer, role, "weight")
        if rule is None:
            raise UnsupportedTargetError(f"{layer.prefix} has no {role}, which DeepSpeed's module needs")
        yield _transposed(columns(f"{layer.prefix}.{weight}", layers, rule, tp_size, tp_rank))
        held = _rule(layer, role, "bias")
        if held is not None:
            yield copy_of(held.name, layers.tensor(held), stored_as=f"{layer.prefix}.{bias}")


def _mlp_up(layers: Layers, layer: Layer, tp_size: int, tp_rank: int) -> Iterator[Stored]:
    weight = _rule(layer, "mlp_up", "weight")
    assert weight is not None
    width = layers.tensor(weight).shape[0]
    if width != 4 * layers.rules.geometry.hidden or width % tp_size:
        raise UnsupportedTargetError(
            f"{weight.name} has {width} rows; DeepSpeed's module takes 4 × hidden, a multiple of the degree"
        )
    share = width // tp_size
    units = Share(part="up", units=(tp_rank * share, (tp_rank + 1) * share))
    for param, name in zip(_PARAMS, ("mlp.inter_w", "mlp.inter_b"), strict=True):
        stored = fused(f"{layer.prefix}.{name}", layers, layer, param, [units])
        if stored is not None:
            yield _transposed(stored)


def _rule(layer: Layer, role: Role, param: str) -> Rule | None:
    return layer.rules.get(role, {}).get(param)


def _transposed(stored: Stored) -> Stored:
    return msgspec.structs.replace(stored, transposed=len(stored.shape) == 2)


def _outside(source: Source, layers: Layers) -> Iterator[Stored]:
    """Embeddings, final norm and head, whole, in one file: the loader wants a weight beside its bias."""
    head = next(name for name, role in layers.rules.table.top.items() if role == "head")
    given = {*layers.outside, *source.aliases}
    for name, rule in layers.outside.items():
        stored_as = f"{head}.{rule.param}" if rule.role == "head" else layers.full_name(name)
        yield copy_of(name, source.tensors[name], stored_as=stored_as)
        is_embedding = rule.role == "embedding" and not any(
            n.startswith(("lm_head.", "embed_out.")) for n in given
        )
        if is_embedding:
            # The loader needs a tied head under its own name.
            yield copy_of(name, source.tensors[name], stored_as=f"{head}.weight")
    for name, first in source.aliases.items():
        yield copy_of(first, source.tensors[first], stored_as=layers.full_name(name))


def _config(source: Source, tp_size: int, names: list[str]) -> bytes:
    kinds = {t.dtype for t in source.tensors.values() if t.dtype.endswith(("float16", "float32"))}
    text = {
        # Any other type, and the loader asks for another file layout.
        "type": "bloom" if source.model.model_type == "bloom" else "ds_model",
        "checkpoints": {"non_tp": [_NON_TP], "tp": names},
        "version": 1.0,
        "parallelization": "tp",
        "tp_size": tp_size,
        "dtype": kinds.pop() if len(kinds) == 1 else "float16",
    }
    return (json.dumps(text, indent=2) + "\n").encode()


def _read(folder: Folder, model: Model | None) -> Source:
    model = model_of(folder, model)
    config = _read_config(folder)
    ranks = _ranks(folder, config)
    names = {key for rank in ranks for held in rank.values() for key in held}
    if any(key.endswith(".attention.attn_qkvw") for key in names):
        return _read_injected(folder, model, config, ranks)
    return read_rank_files(folder, model, "deepspeed", ranks)


def _read_config(folder: Folder) -> _Config:
    try:
        config = msgspec.json.decode(read(folder, CONFIG), type=_Config)
    except msgspec.DecodeError as error:
        raise DamagedFileError(f"{folder.path(CONFIG)} is not what DeepSpeed writes: {error}") from error
    named = (*config.checkpoints.non_tp, *config.checkpoints.tp)
    for file in named:
        if Path(file).name != file:
            raise DamagedFileError(f"{folder.path(CONFIG)} names a file outside its folder: {file!r}")
    if config.tp_size < 1 or not config.checkpoints.tp or len(config.checkpoints.tp) % config.tp_size:
        raise InconsistentShardsError(
            f"{folder.path(CONFIG)} names {len(config.checkpoints.tp)} files for tp_size={config.tp_size}; "
            "it must be a multiple"
        )
    lost = tuple(sorted(set(named) - set(folder.files())))
    if lost:
        raise MissingFileError(f"{folder.path(CONFIG)} names {shown(lost)}, which is not there")
    return config


def _ranks(folder: Folder, config: _Config) -> list[dict[str, dict[str, Stored]]]:
    """For every rank file → key → tensor; then the same for the files of all ranks. Order is the contract."""
    ranks: list[dict[str, dict[str, Stored]]] = [{} for _ in range(config.tp_size + 1)]
    for number, file in enumerate(config.checkpoints.tp):
        ranks[number % config.tp_size][file] = contents(folder, file).tensors
    for file in config.checkpoints.non_tp:
        ranks[-1][file] = contents(folder, file).tensors
    return ranks


def _read_injected(
    folder: Folder, model: Model, config: _Config, ranks: list[dict[str, dict[str, Stored]]]
) -> Source:
    first = {key: t for files in (ranks[0], ranks[-1]) for held in files.values() for key, t in held.items()}
    if any("." in key and key.rpartition(".")[2].isdecimal() for key in first):
        raise UnsupportedSourceError(
            f"{folder.path('')} holds int8 groups of DeepSpeed, whose scales belong to its degree; "
            "quantize the merged checkpoint again instead"
        )
    source = _expected(folder, model, first, config.tp_size)
    layers = Layers(Rules(model, source.tensors))
    files = []
    for rank in range(config.tp_size):
        layout = [t for layer in layers.layers for t in _layer(source, layers, layer, config.tp_size, rank)]
        layout += _outside(source, layers)
        union = {key for held in ranks[rank].values() for key in held} | {
            key for held in ranks[-1].values() for key in held
        }
        lost = tuple(sorted({t.name for t in layout} - union))
        if lost:
            raise InconsistentShardsError(f"rank {rank} has no {shown(lost)}; a file is of another model")
        for file, held in ranks[rank].items():
            mine = [t for t in layout if t.name in held]
            files.append(SourceFile(name=file, rank=rank, tensors=placed(mine, held, folder.path(file))))
    shared = list(_outside(source, layers))
    for file, held in ranks[-1].items():
        mine = [t for t in shared if t.name in held]
        files.append(SourceFile(name=file, tensors=placed(mine, held, folder.path(file))))
    return msgspec.structs.replace(source, files=tuple(files))


def _expected(folder: Folder, model: Model, first: dict[str, Stored], tp_size: int) -> Source:
    """The logical tensors that would have been written as these keys."""
    widths = [t.shape[1] * tp_size for key, t in first.items() if key.endswith(".mlp.inter_w")]
    expected = Expected(model, one_dtype(first.values(), folder.path("")), widths[0] if widths else 0)
    roles = _roles()
    for key in first:
        found = next(((k, role) for k, role in roles.items() if key.endswith(f".{k}")), None)
        if found is None:
            continue
        (name, (role, param)) = found
        index = key.removesuffix(f".{name}").rpartition(".")[2]
        wanted: tuple[Role, ...] = ("query", "key", "value") if role == "query" else (role,)
        for one in wanted:
            expected.add(one, param, int(index))
    head = next(name for name, role in model.known()[0].top.items() if role == "head")
    tensors = dict(expected.tensors)
    for key, stored in first.items():
        if not any(key.endswith(f".{k}") for k in roles) and not (key.startswith(head) and model.is_tied):
            tensors[key] = Logical(dtype=stored.dtype, shape=stored.shape)
    return Source(format="deepspeed", folder=folder, model=model, tensors=tensors, files=(), tp_size=tp_size)


def _roles() -> dict[str, tuple[Role, str]]:
    """The injected module's parameter → role and parameter of the merged checkpoint."""
    pairs: dict[Role, tuple[str, str]] = {
        **_NORMS,
        **_ROWS,
        "query": ("attention.attn_qkvw", "attention.attn_qkvb"),
        "mlp_up": ("mlp.inter_w", "mlp.inter_b"),
    }
    return {name: (role, p) for role, both in pairs.items() for name, p in zip(both, _PARAMS, strict=True)}


def _evidence(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in names if n == CONFIG)


FORMAT: Final = Format(
    name="deepspeed",
    summary="pre-shards for DeepSpeed's kernel injection",
    evidence=_evidence,
    read=_read,
    write=_write,
)
