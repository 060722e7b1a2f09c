"""Reads DeepSpeed's pre-shards: what kernel injection saved, and what AutoTP saved (`tp_*.pt`)."""

from pathlib import Path

import msgspec

from reshard.architectures.schema import Role
from reshard.errors import DamagedFileError, InconsistentShardsError, MissingFileError, UnsupportedSourceError
from reshard.messages import shown
from reshard.model import Model
from reshard.rules import Rules
from reshard.storage import Folder, read
from reshard.tensors import LogicalTensor, StoredTensor

from .base import Source, SourceFile
from .deepspeed_layout import CODES, INDEX_FILE, NORMS, PARAMS, ROWS, layer_tensors, outside_tensors
from .layers import Layers
from .naming import Expected, one_dtype, placed
from .per_rank import read_rank_files
from .reading import contents, model_of


class _Files(msgspec.Struct, frozen=True):
    non_tp: tuple[str, ...]
    tp: tuple[str, ...]


class _Config(msgspec.Struct, frozen=True):
    checkpoints: _Files
    tp_size: int


def read_deepspeed(folder: Folder, model: Model | None) -> Source:
    """The checkpoint that `ds_inference_config.json` in `folder` describes.

    Raises:
        DamagedFileError: a description that contradicts itself, or names files elsewhere.
        MissingFileError: a file that it names is not there.
        InconsistentShardsError: files of different models or degrees.
        UnsupportedSourceError: int8 groups, whose scales belong to one degree.
    """
    model = model_of(folder, model)
    config = _read_config(folder)
    ranks = _ranks(folder, config)
    names = {key for rank in ranks for held in rank.values() for key in held}
    if any(key.endswith(CODES) for key in names):
        raise UnsupportedSourceError(
            f"{folder.path('')} holds int8 groups of DeepSpeed, whose scales belong to its degree; "
            "quantize the merged checkpoint again instead"
        )
    if any(key.endswith(".attention.attn_qkvw") for key in names):
        return _read_injected(folder, model, config, ranks)
    return read_rank_files(folder, model, "deepspeed", ranks)


def _read_config(folder: Folder) -> _Config:
    try:
        config = msgspec.json.decode(read(folder, INDEX_FILE), type=_Config)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise DamagedFileError(f"{folder.path(INDEX_FILE)} is not what DeepSpeed writes: {error}") from error
    named = (*config.checkpoints.non_tp, *config.checkpoints.tp)
    for file in named:
        if Path(file).name != file:
            raise DamagedFileError(f"{folder.path(INDEX_FILE)} names a file outside its folder: {file!r}")
    if config.tp_size < 1 or not config.checkpoints.tp or len(config.checkpoints.tp) % config.tp_size:
        raise InconsistentShardsError(
            f"{folder.path(INDEX_FILE)} names {len(config.checkpoints.tp)} files for "
            f"tp_size={config.tp_size}; it must be a multiple"
        )
    missing = tuple(sorted(set(named) - set(folder.files())))
    if missing:
        raise MissingFileError(f"{folder.path(INDEX_FILE)} names {shown(missing)}, which is not there")
    return config


def _ranks(folder: Folder, config: _Config) -> list[dict[str, dict[str, StoredTensor]]]:
    """For every rank file → key → tensor; then the same for the files of all ranks.

    The order of the files in the index says which rank's they are.
    """
    ranks: list[dict[str, dict[str, StoredTensor]]] = [{} for _ in range(config.tp_size + 1)]
    for number, file in enumerate(config.checkpoints.tp):
        ranks[number % config.tp_size][file] = contents(folder, file).tensors
    for file in config.checkpoints.non_tp:
        ranks[-1][file] = contents(folder, file).tensors
    return ranks


def _read_injected(
    folder: Folder, model: Model, config: _Config, ranks: list[dict[str, dict[str, StoredTensor]]]
) -> Source:
    # The union of all ranks: a tensor that one rank lacks is an error, not a smaller model.
    first = {key: t for files in reversed(ranks) for held in files.values() for key, t in held.items()}
    source = _expected(folder, model, first, config.tp_size)
    layers = Layers(Rules(model, source.tensors))
    files = []
    for rank in range(config.tp_size):
        layout = [t for layer in layers.layers for t in layer_tensors(layers, layer, config.tp_size, rank)]
        layout += outside_tensors(source, layers)
        union = {key for held in ranks[rank].values() for key in held} | {
            key for held in ranks[-1].values() for key in held
        }
        missing = tuple(sorted({t.name for t in layout} - union))
        if missing:
            raise InconsistentShardsError(f"rank {rank} has no {shown(missing)}; a file is of another model")
        for file, held in ranks[rank].items():
            mine = [t for t in layout if t.name in held]
            files.append(SourceFile(name=file, rank=rank, tensors=placed(mine, held, folder.path(file))))
    shared = list(outside_tensors(source, layers))
    for file, held in ranks[-1].items():
        mine = [t for t in shared if t.name in held]
        files.append(SourceFile(name=file, tensors=placed(mine, held, folder.path(file))))
    return msgspec.structs.replace(source, files=tuple(files))


def _expected(folder: Folder, model: Model, first: dict[str, StoredTensor], tp_size: int) -> Source:
    """The logical tensors that would have been written as these keys."""
    widths = [t.shape[1] * tp_size for key, t in first.items() if key.endswith(".mlp.inter_w")]
    expected = Expected(model, one_dtype(first.values(), folder.path("")), widths[0] if widths else 0)
    roles = _roles()
    for key in first:
        match = next(((k, role) for k, role in roles.items() if key.endswith(f".{k}")), None)
        if match is None:
            continue
        (name, (role, param)) = match
        index = key.removesuffix(f".{name}").rpartition(".")[2]
        wanted: tuple[Role, ...] = ("query", "key", "value") if role == "query" else (role,)
        for expected_role in wanted:
            expected.add(expected_role, param, int(index))
    head = next(name for name, role in model.known()[0].top.items() if role == "head")
    tensors = dict(expected.tensors)
    for key, stored in first.items():
        if not any(key.endswith(f".{k}") for k in roles) and not (key.startswith(head) and model.is_tied):
            tensors[key] = LogicalTensor(dtype=stored.dtype, shape=stored.shape)
    return Source(format="deepspeed", folder=folder, model=model, tensors=tensors, files=(), tp_size=tp_size)


def _roles() -> dict[str, tuple[Role, str]]:
    """The injected module's parameter → role and parameter of the merged checkpoint."""
    pairs: dict[Role, tuple[str, str]] = {
        **NORMS,
        **ROWS,
        "query": ("attention.attn_qkvw", "attention.attn_qkvb"),
        "mlp_up": ("mlp.inter_w", "mlp.inter_b"),
    }
    return {name: (role, p) for role, both in pairs.items() for name, p in zip(both, PARAMS, strict=True)}
