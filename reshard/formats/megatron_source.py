"""Reads Megatron's checkpoints: every TP rank and PP stage, in any of its versions and namings."""

import itertools
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from reshard.architectures.schema import Role
from reshard.errors import (
    AmbiguousSourceError,
    DamagedFileError,
    InconsistentShardsError,
    UnsupportedSourceError,
)
from reshard.messages import shown
from reshard.model import Model
from reshard.rules import Rules
from reshard.storage import Folder, read
from reshard.tensors import LogicalTensor, StoredTensor

from .base import Source, SourceFile
from .layers import Layers
from .megatron_layout import check, rank_tensors
from .megatron_names import (
    EMBEDDING,
    FILE,
    FINAL_NORM,
    HEAD,
    LATEST_FILE,
    NORMS,
    POSITION,
    canonical,
    evidence,
)
from .naming import Expected, module_of, one_dtype, placed
from .reading import Contents, contents, model_of

_VERSIONS: Final = (0.0, 1.0, 2.0, 3.0)


class _Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One file: a TP rank of a pipeline stage, its keys canonical and its layers numbered over all stages."""

    file: str
    tp: int
    pp: int
    tensors: dict[str, StoredTensor]


def read_megatron(folder: Folder, model: Model | None) -> Source:
    """The checkpoint in `folder`: an iteration's, or the one above with `latest_checkpointed_iteration.txt`.

    Raises:
        UnsupportedSourceError: expert or virtual pipeline parallelism, or names that are not known.
        InconsistentShardsError: ranks are missing or contradict each other.
    """
    model = model_of(folder, model)
    grid = _grid(folder)
    stages, version = _stages(folder, grid)
    tp_size = 1 + max(s.tp for s in stages)
    first = {key: t for s in stages if s.tp == 0 for key, t in s.tensors.items()}
    rows = first[f"{EMBEDDING}.weight"].shape[0] * tp_size if f"{EMBEDDING}.weight" in first else 0
    source = _expected(folder, model, first, tp_size)
    check(source, tp_size)
    layers = Layers(Rules(model, source.tensors))
    files = []
    for stage in stages:
        layout = {t.name: t for t in rank_tensors(layers, tp_size, stage.tp, version, rows)}
        if model.is_tied and f"{HEAD}.weight" in stage.tensors:
            tied = msgspec.structs.replace(layout[f"{EMBEDDING}.weight"], name=f"{HEAD}.weight")
            layout[tied.name] = tied
        unknown = tuple(sorted(set(stage.tensors) - set(layout)))
        if unknown:
            raise UnsupportedSourceError(
                f"{folder.path(stage.file)} holds {shown(unknown)}, for which {model.model_type!r} has no "
                "place"
            )
        mine = [layout[key] for key in stage.tensors]
        files.append(
            SourceFile(
                name=stage.file, rank=stage.tp, tensors=placed(mine, stage.tensors, folder.path(stage.file))
            )
        )
    return msgspec.structs.replace(source, files=tuple(files))


def _grid(folder: Folder) -> dict[tuple[int, int], str]:
    """(TP rank, PP stage) → file."""
    iterations: dict[str, dict[tuple[int, int], str]] = {}
    for name in evidence(folder.files()):
        match = FILE.fullmatch(name)
        assert match is not None
        if match["ep"]:
            raise UnsupportedSourceError(f"{folder.path(name)}: expert parallelism is not read")
        place = (int(match["tp"]), int(match["pp"] or 0))
        iterations.setdefault(match["iteration"] or "", {})[place] = name
    grid = iterations[_iteration(folder, tuple(iterations))]
    tp_size, stages = (1 + max(place[i] for place in grid) for i in range(2))
    wanted = set(itertools.product(range(tp_size), range(stages)))
    missing = tuple(f"mp_rank_{tp:02d}_{pp:03d}" for tp, pp in sorted(wanted - set(grid)))
    if missing:
        raise InconsistentShardsError(f"{folder.path('')} lacks {shown(missing)}")
    return grid


def _iteration(folder: Folder, there: tuple[str, ...]) -> str:
    if len(there) == 1:
        return there[0]
    raw = read(folder, LATEST_FILE) if LATEST_FILE in folder.files() else b""
    latest = raw.decode("utf-8", "replace").strip()
    name = f"iter_{int(latest):07d}" if latest.isdecimal() else latest
    if name not in there:
        raise AmbiguousSourceError(
            f"{folder.path('')} holds several iterations ({shown(tuple(sorted(there)))}) and no "
            f"{LATEST_FILE} that names one; give the iteration's folder"
        )
    return name


def _stages(folder: Folder, grid: Mapping[tuple[int, int], str]) -> tuple[list[_Stage], float]:
    stages: list[_Stage] = []
    versions: set[float] = set()
    before: dict[int, int] = {}
    for (tp, pp), file in sorted(grid.items()):
        held = contents(folder, file, ("model",))
        versions.add(_version(held, folder.path(file)))
        offset = before.get(tp, 0)
        tensors: dict[str, StoredTensor] = {}
        count = 0
        for key, stored in held.tensors.items():
            name = canonical(key)
            if name is None:
                continue
            index, pattern = name
            count = max(count, 0 if index is None else index + 1)
            full = pattern if index is None else pattern.format(index + offset)
            tensors[full] = msgspec.structs.replace(stored, name=full)
        before[tp] = offset + count
        stages.append(_Stage(file=file, tp=tp, pp=pp, tensors=tensors))
    if len(versions) != 1:
        raise InconsistentShardsError(f"{folder.path('')} mixes checkpoint versions {sorted(versions)}")
    return stages, versions.pop()


def _version(held: Contents, shown_name: str) -> float:
    """Checkpoints before versions were introduced are of version 0."""
    stated: Any = held.values.get("checkpoint_version", 0.0)
    if stated not in _VERSIONS:
        raise DamagedFileError(f"{shown_name} is of checkpoint version {stated!r}; known are {_VERSIONS}")
    return float(stated)


def _expected(folder: Folder, model: Model, first: dict[str, StoredTensor], tp_size: int) -> Source:
    """The logical tensors that rank 0's keys stand for."""
    geometry = model.known()[1]
    dtype = one_dtype(first.values(), folder.path(""))
    is_gated = module_of(model, "mlp_gate", 0) is not None
    widths = [t.shape[0] * tp_size for key, t in first.items() if key.endswith("mlp.linear_fc1.weight")]
    if not widths:
        raise UnsupportedSourceError(f"{folder.path('')} has no layers under names that are known")
    expected = Expected(model, dtype, widths[0] // (2 if is_gated else 1))
    for key, stored in first.items():
        module, _, param = key.rpartition(".")
        words = module.split(".")
        index = int(words[2]) if key.startswith("decoder.layers.") else None
        for role, name in _roles(module, param, is_gated):
            if role in ("embedding", "head"):
                if role == "head" and model.is_tied:
                    continue
                expected.add(role, name, None, (geometry.vocab, *stored.shape[1:]))
            else:
                shape = stored.shape if role in ("position", "norm") else ()
                expected.add(role, name, index, shape)
        leaf = words[-1]
        if leaf in ("q_layernorm", "k_layernorm") and index is not None:
            expected.tensors[_per_head(model, index, leaf, param)] = LogicalTensor(
                dtype=dtype, shape=stored.shape
            )
    return Source(
        format="megatron", folder=folder, model=model, tensors=expected.tensors, files=(), tp_size=tp_size
    )


def _roles(module: str, param: str, is_gated: bool) -> list[tuple[Role, str]]:
    """Roles and parameters that a canonical key stands for."""
    if param.startswith("layer_norm_"):
        end = f"{module.split('.', 3)[-1]}.layer_norm_"
        return [(role, param.removeprefix("layer_norm_")) for role, name in NORMS.items() if name == end]
    outside: dict[str, Role] = {
        EMBEDDING: "embedding", POSITION: "position", FINAL_NORM: "final_norm", HEAD: "head",
    }  # fmt: skip
    if module in outside:
        return [(outside[module], param)]
    up: tuple[Role, ...] = ("mlp_gate", "mlp_up") if is_gated else ("mlp_up",)
    inside: dict[str, tuple[Role, ...]] = {
        "linear_qkv": ("query", "key", "value"),
        "linear_proj": ("attention_output",),
        "linear_fc1": up,
        "linear_fc2": ("mlp_output",),
    }
    return [(role, param) for role in inside.get(module.rpartition(".")[2], ())]


def _per_head(model: Model, index: int, leaf: str, param: str) -> str:
    """The name of a norm of queries or keys, which stands beside their projection."""
    query = module_of(model, "query", index)
    assert query is not None
    return f"{query.module.rpartition('.')[0]}.{leaf[0]}_norm.{param}"
